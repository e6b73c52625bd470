"""What the values of a tensor are like, of pieces that pass by once.

Moments are of the finite values, in float64: of a piece by two passes over it, of several by the
update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979). Sums of whole numbers are exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

PIECE_VALUES = 1 << 20  # widened at once: 8 MB as float64


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of values that were seen so far; of none, if nothing is given."""

    values: int = 0
    zeros: int = 0
    nan: int = 0
    infinite: int = 0
    min: float | None = None
    max: float | None = None
    total: int | None = None  # of whole numbers
    mean: float = 0.0
    squares: float = 0.0  # of the differences from the mean, summed

    @property
    def finite(self) -> int:
        """How many values the moments are of."""
        return self.values - self.nan - self.infinite

    def record(self) -> dict[str, Any]:
        """Counts, shares of all values, and min, max, mean and std of the finite ones.

        std is that of the population. Where no value is finite, all four are None.
        """
        counts = {"values": self.values}
        for name in ("zeros", "nan", "infinite"):
            counts[name] = getattr(self, name)
        shares = {
            f"{name}_share": counts[name] / max(1, self.values)
            for name in ("zeros", "nan", "infinite")
        }
        known = self.finite > 0
        return {
            **counts,
            **shares,
            "min": self.min,
            "max": self.max,
            "mean": self.mean if known else None,
            "std": math.sqrt(self.squares / self.finite) if known else None,
        }


def moments_of(tensor: Tensor) -> Moments:
    """The moments of a tensor of any shape and dtype, in pieces that take little memory."""
    return reduce(merged, map(_moments_of_piece, _pieces(tensor)), Moments())


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of the values of two."""
    finite = a.finite + b.finite
    mean = squares = 0.0
    total = None if a.total is None and b.total is None else (a.total or 0) + (b.total or 0)
    if finite:
        apart = b.mean - a.mean
        share = b.finite / finite
        mean = a.mean + apart * share if total is None else total / finite
        squares = a.squares + b.squares + apart * apart * a.finite * share
    return Moments(
        values=a.values + b.values,
        zeros=a.zeros + b.zeros,
        nan=a.nan + b.nan,
        infinite=a.infinite + b.infinite,
        min=min((m.min for m in (a, b) if m.min is not None), default=None),
        max=max((m.max for m in (a, b) if m.max is not None), default=None),
        total=total,
        mean=mean,
        squares=squares,
    )


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The values, in order, flat."""
    flat = tensor.reshape(-1)
    for at in range(0, len(flat), PIECE_VALUES):
        yield flat[at : at + PIECE_VALUES]


def _moments_of_piece(piece: Tensor) -> Moments:
    if not piece.dtype.is_floating_point:
        return _moments_of_whole(piece.byte() if piece.dtype == torch.bool else piece)
    wide = piece.double()
    mean = wide.mean()
    counts = Moments(values=len(piece), zeros=len(piece) - int(torch.count_nonzero(piece)))
    if not bool(mean.isfinite()):  # as of all finite values it is
        wide = wide[wide.isfinite()]
        nan = int(piece.isnan().sum())
        counts = replace(counts, nan=nan, infinite=len(piece) - len(wide) - nan)
        if not len(wide):
            return counts
        mean = wide.mean()
    least, most = torch.aminmax(wide)
    wide -= mean
    return replace(
        counts,
        min=float(least),
        max=float(most),
        mean=float(mean),
        squares=float(wide.dot(wide)),
    )


def _moments_of_whole(piece: Tensor) -> Moments:
    if piece.dtype == torch.int64:  # whose sum may be beyond int64: its halves are summed apart
        total = (int((piece >> 32).sum()) << 32) + int((piece & 0xFFFFFFFF).sum())
    else:
        total = int(piece.sum())
    mean = total / len(piece)
    least, most = torch.aminmax(piece)
    wide = piece.double()
    wide -= mean
    return Moments(
        values=len(piece),
        zeros=len(piece) - int(torch.count_nonzero(piece)),
        min=int(least),
        max=int(most),
        total=total,
        mean=mean,
        squares=float(wide.dot(wide)),
    )
