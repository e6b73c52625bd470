"""Method `tables` on a CPU without a C compiler: the body of combine_c.py in torch's operations."""

import torch
from torch import Tensor

from kernels.blocks import blocks
from kernels.rotary import Rotary, rotate_
from kernels.tables import Tables

# Of a block in float32, a thread. Measured on 2 cores with 2 MB of L2 each, T = 1024, real text,
# d=768, million tokens a second:
#   128 kB, 256 kB, 512 kB, 1 MB, 4 MB: float32 0.53, 0.65, 0.79, 0.80, 0.76
#   cast to bfloat16 within the block:          0.64, 0.85, 1.00, 0.99, 0.97
# Tried beside it, in float32: A with the columns of all heads in a row, stored by head after it was
# added to (0.79 of it), B added before storing (0.91), windows before heads (0.94), gathering into
# the output itself (0.91), embedding_bag over A and B (1.02), a sparse product (0.7), numpy.take
# (0.78); in bfloat16: the addition casting its sum (that alone 0.5). torch.compile's C++ was up
# to 1.8 times as fast, but takes 25 s, or 4 s once it has been there; combine.c takes 0.3 s and
# is 3 to 4 times as fast.
BLOCK_BYTES = 1 << 19


def block_rows(width: int) -> int:
    """Tokens whose `width` columns are combined at once, by all threads: a power of two."""
    rows = BLOCK_BYTES * torch.get_num_threads() // (4 * width)
    return 1 << max(0, rows.bit_length() - 1)


def combine_heads(
    tables: Tables,
    heads: slice,
    rows: Tensor,
    scale: Tensor | None,
    rotary: Rotary | None,
    target: Tensor,
) -> None:
    """Write q, k or v [W, heads, T, Dh], in blocks of tokens and of heads that are stored together.

    All tokens of one head come before the next head, unless they are too few to fill a block, or
    the heads of a token lie side by side in the target.
    """
    count, width = heads.stop - heads.start, tables.head_dim
    side_by_side = target.stride(1) < target.stride(2)
    together = count if side_by_side else min(count, block_rows(width) // max(1, rows.numel()) or 1)
    per_block = block_rows(together * width)
    cuts = [(*cut, rows[cut].reshape(-1)) for cut in blocks(rows, per_block)]
    buffer = torch.empty(together * min(per_block, rows.numel()) * width)
    norm, addends = tables.norm, tables.position_table
    for first in range(0, count, together):
        some = slice(heads.start + first, min(heads.start + first + together, heads.stop))
        table = tables.token_table[some]
        for windows, positions, flat in cuts:
            out = target[windows, first : first + together, positions].transpose(0, 1)
            value = buffer[: out.numel()].view(len(table), len(flat), width)
            if len(table) == 1:  # which torch's threads share, unlike several tables
                torch.index_select(table[0], 0, flat, out=value[0])
            else:
                torch.index_select(table, 1, flat, out=value)
            value = value.view(out.shape)
            if addends is None:
                if rotary is not None:
                    rotate_(value.unsqueeze(3), rotary, positions)
                out.copy_(value)
            elif norm is None or scale is None:
                _store_sum(value, addends[some, None, positions], out)
            else:
                value += addends[some, None, positions]
                value *= scale[windows, positions].unsqueeze(2)
                _store_sum(value, norm.constant.view(-1, 1, 1, width)[some], out)


def _store_sum(value: Tensor, addend: Tensor, out: Tensor) -> None:
    """Write value + addend, in one pass where nothing is rounded; value is changed."""
    if out.dtype == value.dtype:
        torch.add(value, addend, out=out)
    else:
        out.copy_(value.add_(addend))
