"""Squared lengths of x = s E[t] + P[p], of which r(t, p) is made: by squares.c, or by torch.

Both give the same bits: squares are added in float64, in the order that is written here.
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.blocks import blocks
from kernels.native import Run, address, by_threads, load
from kernels.tables import NormTables

SOURCE = Path(__file__).with_name("squares.c")
LANES = 32  # sums that are kept side by side, and added one after the other in the end
PART_TOKENS = 1024  # that a thread takes at once
BLOCK_TOKENS = 512  # of torch's operations


class _Job(ctypes.Structure):
    """struct job of squares.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("token_features", "position_features", "means")),
        *((name, ctypes.c_void_p) for name in ("rows", "out")),
        *((name, ctypes.c_int64) for name in ("count", "length", "d", "part", "next")),
    )


def function() -> tuple[Run | None, str]:
    """What squares.c makes, and what compiled it; or None, and why."""
    return load(SOURCE)


def squares(norm: NormTables, rows: Tensor) -> Tensor:
    """Squared lengths of x, without its mean for layernorm, for rows of A, int32 [W, T].

    Returns float64 [W, T].
    """
    run, _ = function()
    return _by_torch(norm, rows) if run is None else _by_c(run, norm, rows)


def _by_torch(norm: NormTables, rows: Tensor) -> Tensor:
    d = norm.token_features.shape[1]
    found = torch.empty(rows.shape, dtype=torch.float64)
    means = norm.means(rows)
    for windows, positions in blocks(rows, BLOCK_TOKENS):
        block = rows[windows, positions]
        x = norm.token_features.index_select(0, block.reshape(-1)).view(*block.shape, d)
        x += norm.position_features[positions]
        if means is not None:
            x -= means[windows, positions].unsqueeze(2)
        # cumsum adds one after the other, as sum does not.
        lanes = F.pad(x.double().square_(), (0, -d % LANES)).view(*block.shape, -1, LANES)
        found[windows, positions] = lanes.cumsum(2)[:, :, -1].cumsum(2)[:, :, -1]
    return found


def _by_c(run: Run, norm: NormTables, rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    means = norm.means(rows)
    found = torch.empty(rows.shape, dtype=torch.float64)
    job = _Job(
        token_features=address(norm.token_features),
        position_features=address(norm.position_features),
        means=None if means is None else address(means),
        rows=address(rows, torch.int32),
        out=address(found, torch.float64),
        count=rows.numel(),
        length=rows.shape[1],
        d=norm.token_features.shape[1],
        part=PART_TOKENS,
    )
    by_threads(run, job, -(-rows.numel() // PART_TOKENS))
    return found
