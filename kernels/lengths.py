"""Lengths of x = s E[t] + P[p], of which r(t, p) is made: by lengths.c, or by torch's operations.

Both give the same bits: squares are added in float64, in the order that is written here.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kernels.blocks import blocks
from kernels.native import Run, address, by_threads, load
from kernels.tables import NormTables

SOURCE = Path(__file__).with_name("lengths.c")
LANES = 64  # sums that are kept side by side, and added by halves in the end
PART_TOKENS = 1024  # that a thread takes at once
BLOCK_TOKENS = 512  # of torch's operations


class _Job(ctypes.Structure):
    """struct job of lengths.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("token_features", "position_features", "means")),
        *((name, ctypes.c_void_p) for name in ("rows", "out")),
        *((name, ctypes.c_int64) for name in ("count", "length", "d", "part", "next")),
    )


def lengths(norm: NormTables, rows: Tensor) -> Tensor:
    """Lengths of x, without its mean for layernorm, float32 [W, T], for rows of A, int32 [W, T]."""
    run, _ = load(SOURCE)
    return _by_torch(norm, rows) if run is None else _by_c(run, norm, rows)


def _by_torch(norm: NormTables, rows: Tensor) -> Tensor:
    d = norm.token_features.shape[1]
    found = torch.empty(rows.shape)
    means = norm.means(rows)
    for windows, positions in blocks(rows, BLOCK_TOKENS):
        block = rows[windows, positions]
        x = norm.token_features.index_select(0, block.reshape(-1)).view(*block.shape, d)
        x += norm.position_features[positions]
        if means is not None:
            x -= means[windows, positions].unsqueeze(2)
        sums = torch.zeros(*block.shape, LANES, dtype=torch.float64)
        for part in torch.split(x, LANES, dim=2):
            sums[..., : part.shape[2]] += part.double().square_()
        for half in (LANES >> step for step in range(1, LANES.bit_length())):
            sums = sums[..., :half] + sums[..., half:]
        found[windows, positions] = sums[..., 0].sqrt_()
    return found


def _by_c(run: Run, norm: NormTables, rows: Tensor) -> Tensor:
    rows, means = rows.contiguous(), norm.means(rows)
    found = torch.empty(rows.shape)
    job = _Job(
        token_features=address(norm.token_features),
        position_features=address(norm.position_features),
        means=None if means is None else address(means),
        rows=address(rows),
        out=address(found),
        count=rows.numel(),
        length=rows.shape[1],
        d=norm.token_features.shape[1],
        part=PART_TOKENS,
    )
    by_threads(run, job, -(-rows.numel() // PART_TOKENS))
    return found
