"""Method `tables` on the CPU: calls combine.c."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kernels.layer import DTYPES
from kernels.native import Run, address, by_threads, load
from kernels.rotary import Rotary
from kernels.tables import Tables

SOURCE = Path(__file__).with_name("combine.c")
# Of an output from which it is stored past the caches, which cannot hold it: at d=768 in float32
# 1.6 times as many tokens a second as by way of them.
STREAM_BYTES = 16 << 20
PART_BYTES = 1 << 20  # that a thread writes before it asks for more

_NAMES = {dtype: name.upper() for name, dtype in DTYPES.items()}


class _Job(ctypes.Structure):
    """struct job of combine.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("token_table", "position_table", "scale")),
        *((name, ctypes.c_void_p) for name in ("constant", "cosine", "sine", "rows", "out")),
        *((name, ctypes.c_int64) for name in ("windows", "heads", "length", "width", "half")),
        *((name, ctypes.c_int64) for name in ("token_stride", "position_stride")),
        *((name, ctypes.c_int64) for name in ("window_stride", "head_stride", "length_stride")),
        *((name, ctypes.c_int32) for name in ("interleaved", "stream")),
        *((name, ctypes.c_int64) for name in ("part", "next")),
    )


def function(head_dim: int, dtype: torch.dtype) -> tuple[Run | None, str]:
    """What combine.c makes for heads of a width and outputs of a dtype, and what compiled it.

    None, and why, where there is no compiler or what it made cannot be loaded.
    """
    # Widths of whole vectors are worth a function of their own; it is up to a fifth faster.
    width = 0 if head_dim % 16 else head_dim
    return load(SOURCE, f"-D{_NAMES[dtype]}", f"-DWIDTH={width}")


def combine_heads(
    run: Run,
    tables: Tables,
    heads: slice,
    rows: Tensor,
    scale: Tensor | None,
    rotary: Rotary | None,
    target: Tensor,
) -> None:
    """As combine_torch.combine_heads, by the function for the target, whose last stride is 1."""
    table, addends, norm = tables.token_table[heads], tables.position_table, tables.norm
    rows = rows.contiguous()
    item = target.element_size()
    job = _Job(
        token_table=address(table),
        rows=address(rows, torch.int32),
        out=target.data_ptr(),
        windows=target.shape[0],
        heads=len(table),
        length=target.shape[2],
        width=tables.head_dim,
        token_stride=table.stride(0),
        window_stride=target.stride(0),
        head_stride=target.stride(1),
        length_stride=target.stride(2),
        stream=target.numel() * item >= STREAM_BYTES,
        part=max(1, PART_BYTES // (tables.head_dim * item)),
    )
    if addends is not None:
        job.position_table, job.position_stride = address(addends[heads]), addends.stride(0)
    if norm is not None and scale is not None:
        job.scale = address(scale)
        job.constant = address(norm.constant.view(-1, tables.head_dim)[heads])
    if rotary is not None:
        job.cosine, job.sine = address(rotary.cos), address(rotary.sin)
        job.half, job.interleaved = rotary.cos.shape[1], rotary.interleaved
    parts = -(-target.numel() // (tables.head_dim * job.part))
    by_threads(run, job, parts)
