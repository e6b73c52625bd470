"""Method `tables` on the CPU: for each head gather rows of A, add B, rescale, turn, store.

By combine_c.py where a C compiler is at hand, else by combine_torch.py, with the same bits, but of
NaN, whose bits torch itself rounds in two ways. The GPU's body of the same function is in
combine_triton.py.
"""

import torch
from torch import Tensor

from kernels import combine_c, combine_torch, squares
from kernels.native import Run
from kernels.tables import Tables, recompute, rescaling


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
        ValueError: if windows are longer than the positions, or an output has another shape.
        IndexError: if A has no such row.
    """
    tables.check_length(rows.shape[1])
    outputs = (q, k, v)
    for heads, target in zip(tables.head_counts, outputs, strict=True):
        shape = (rows.shape[0], heads, rows.shape[1], tables.head_dim)
        if target is not None and target.shape != shape:
            raise ValueError(f"an output of {tuple(target.shape)} instead of {shape}")
    if rows.numel() == 0:
        return
    count = tables.token_table.shape[1]
    least, most = (int(value) for value in rows.aminmax())
    if least < 0 or most >= count:
        raise IndexError(f"rows from {least} to {most}, but A has {count}")
    scale = lost = None
    if tables.norm is not None:
        scale, lost = rescaling(tables.norm, rows, squares.squares(tables.norm, rows))
    head = 0
    for name, heads, target in zip("qkv", tables.head_counts, outputs, strict=True):
        if target is not None:
            some = slice(head, head + heads)
            rotary = None if name == "v" else tables.rotary
            run, _ = _by_c(tables, target.dtype)
            # C writes the values of a head side by side only.
            if run is None or target.stride(3) != 1:
                combine_torch.combine_heads(tables, some, rows, scale, rotary, target)
            else:
                combine_c.combine_heads(run, tables, some, rows, scale, rotary, target)
        head += heads
    if lost is not None:
        recompute(tables, rows, lost, outputs)


def body(tables: Tables, dtype: torch.dtype) -> tuple[str, str]:
    """What combines here, "C" or "torch-cpu", and which compiler that is or why there is none."""
    run, reason = _by_c(tables, dtype)
    return ("torch-cpu" if run is None else "C"), reason


def _by_c(tables: Tables, dtype: torch.dtype) -> tuple[Run | None, str]:
    """The function of combine.c, and its compiler; or None, and why, where that lacks any of C."""
    if tables.norm is not None:
        run, reason = squares.function()
        if run is None:
            return None, reason
    return combine_c.function(tables.head_dim, dtype)
