"""Method `tables` on the CPU: gather rows of A, add B, rescale, store by head, block by block.

The GPU's body of the same function is in combine_triton.py.
"""

import torch
from torch import Tensor

from kernels.blocks import blocks
from kernels.rotary import Rotary, rotate_
from kernels.tables import NormTables, Tables, recompute, rescaling

# A block's rows of q, k or v in float32; the largest power of two below is taken. Measured on 2
# cores with 1 MB of L2 each and 32 MB of L3, T = 1024, real text, tokens a second, in one run:
#   d=768, q, k and v one after the other: 512 rows 0.77 M, 1024 0.95 M, 2048 1.03 M, 4096 0.89 M
#   d=768, all of a row together: 256 rows 0.76 M, 512 0.93 M, 1024 0.94 M, 4096 0.47 M
# Tried beside it, d=768: adding B while storing by head (0.9 of it), casting a whole block before
# it is stored (bfloat16, 1.06), a thread for each block (0.8 to 1.1), index_select into the output
# head by head (0.7), embedding_bag over A and B (0.8), torch.compile's C++ (0.3; at d=64 0.4, in
# bfloat16 1.4).
BLOCK_BYTES = 6 << 20


def block_rows(width: int) -> int:
    """Tokens whose `width` columns are combined at once."""
    rows = BLOCK_BYTES // (4 * width)
    return 1 << max(0, rows.bit_length() - 1)


def combine(
    tables: Tables,
    rows: Tensor,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
) -> None:
    """Write those of q [W, H, T, Dh], k and v [W, Hk, T, Dh] that are given, for rows of A.

    `rows` is int32 [W, T]. Computed in float32 and rounded once, to the dtype of the outputs, which
    may be of any strides. Every output hangs on its token and position alone, not on what else is
    combined with it.

    Raises:
        ValueError: if windows are longer than the positions.
    """
    tables.check_length(rows.shape[1])
    scale = lost = None
    if tables.norm is not None:
        scale, lost = rescaling(tables.norm, rows, _lengths(tables.norm, rows))
    outputs = (q, k, v)
    for name, columns, target in zip("qkv", tables.columns, outputs, strict=True):
        if target is not None:
            rotary = None if name == "v" else tables.rotary
            _combine_columns(tables, columns, rows, scale, rotary, target)
    if lost is not None:
        recompute(tables, rows, lost, outputs)


def _combine_columns(
    tables: Tables,
    columns: slice,
    rows: Tensor,
    scale: Tensor | None,
    rotary: Rotary | None,
    target: Tensor,
) -> None:
    """Write q, k or v, whose columns of A are more likely to stay in the caches than all of A."""
    table = tables.token_table[:, columns]
    per_block = block_rows(table.shape[1])
    buffer = torch.empty(min(per_block, rows.numel()), table.shape[1])
    for windows, positions in blocks(rows, per_block):
        block = rows[windows, positions]
        flat = buffer[: block.numel()]
        torch.index_select(table, 0, block.reshape(-1), out=flat)
        out = flat.view(*block.shape, -1)
        if tables.position_table is not None:
            out += tables.position_table[positions, columns]
        if tables.norm is not None and scale is not None:
            out *= scale[windows, positions].unsqueeze(2)
            out += tables.norm.constant[columns]
        by_head = out.view(*block.shape, -1, tables.head_dim)
        if rotary is not None:
            rotate_(by_head, rotary, positions)
        target[windows, :, positions] = by_head.transpose(1, 2)


def _lengths(norm: NormTables, rows: Tensor) -> Tensor:
    """Lengths of x = s E[t] + P[p], without its mean for layernorm, float32 [W, T]."""
    lengths = torch.empty(rows.shape)
    means = norm.means(rows)
    for windows, positions in blocks(rows, block_rows(norm.token_features.shape[1])):
        block = rows[windows, positions]
        x = norm.token_features.index_select(0, block.reshape(-1)).view(*block.shape, -1)
        x += norm.position_features[positions]
        if means is not None:
            x -= means[windows, positions].unsqueeze(2)
        torch.linalg.vector_norm(x, dim=2, out=lengths[windows, positions])
    return lengths
