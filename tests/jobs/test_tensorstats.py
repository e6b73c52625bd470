"""Moments against torch's and numpy's own, in float64, and whole numbers against Python's."""

import math
import statistics

import numpy as np
import pytest
import torch

from jobs import tensorstats
from jobs.tensorstats import Moments, merged, moments_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_floats_have_the_moments_that_torch_tells(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorstats, "PIECE_VALUES", piece)
    tensor = (1000 + torch.randn(3, 5, 7)).to(dtype)
    tensor[0, 0, :4] = 0
    found = moments_of(tensor).record()
    wide = tensor.double()
    assert (found["values"], found["zeros"], found["nan"], found["infinite"]) == (105, 4, 0, 0)
    assert (float(wide.min()), float(wide.max())) == (found["min"], found["max"])
    assert float(wide.mean()) == pytest.approx(found["mean"], rel=1e-14)
    assert float(wide.std(correction=0)) == pytest.approx(found["std"], rel=1e-12)
    assert found["zeros_share"] == 4 / 105


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    values = [math.nan, 1.0, -math.inf, 3.0, math.inf, 0.0, -0.0]
    found = moments_of(torch.tensor(values)).record()
    finite = np.array([1.0, 3.0, 0.0, -0.0])
    assert (found["values"], found["zeros"], found["nan"], found["infinite"]) == (7, 2, 1, 2)
    assert (0.0, 3.0, finite.mean()) == (found["min"], found["max"], found["mean"])
    assert finite.std() == pytest.approx(found["std"])
    assert (found["nan_share"], found["infinite_share"]) == (1 / 7, 2 / 7)


def test_where_nothing_is_finite_there_are_no_moments() -> None:
    for tensor in (torch.full((3,), torch.nan), torch.empty(0), torch.empty(0, dtype=torch.int32)):
        found = moments_of(tensor).record()
        assert [found[name] for name in ("min", "max", "mean", "std")] == [None] * 4
        assert len(tensor) == found["nan"]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_sums_of_whole_numbers_are_exact(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorstats, "PIECE_VALUES", piece)
    values = [2**63 - 1, -(2**63), 2**62, 2**62 + 1, 2**62, -1, 0]
    moments = moments_of(torch.tensor(values))
    assert sum(values) == moments.total
    assert sum(values) / 7 == moments.record()["mean"]
    assert (min(values), max(values), 1) == (moments.min, moments.max, moments.zeros)
    assert statistics.pstdev(values) == pytest.approx(moments.record()["std"], rel=1e-12)


def test_truths_are_ones() -> None:
    found = moments_of(torch.tensor([True, True, False, True])).record()
    assert (found["min"], found["max"], found["mean"], found["zeros"]) == (0, 1, 0.75, 1)


def test_a_large_mean_leaves_the_spread_exact() -> None:
    tensor = torch.arange(1000, dtype=torch.float64) + 1e12
    halves = merged(moments_of(tensor[:3]), moments_of(tensor[3:]))
    assert statistics.pstdev(range(1000)) == pytest.approx(halves.record()["std"], rel=1e-9)


def test_nothing_merged_with_something_is_that() -> None:
    some = moments_of(torch.randn(10))
    assert some == merged(Moments(), some)
    assert some == merged(some, Moments())
