from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.layer import Norm
from kernels.squares import squares
from kernels.tables import NormTables, build
from tests.helpers import needs_c, random_ids, random_layer

NORMS: list[Norm] = ["layernorm", "rmsnorm"]


def case(d: int, norm: Norm, windows: int, length: int, offset: float) -> tuple[NormTables, Tensor]:
    layer = random_layer(d=d, norm=norm, context_length=length)
    layer = replace(layer, embedding=layer.embedding + offset)
    ids = random_ids(windows, length)
    tables = build(layer, torch.unique(ids).to(torch.int32), torch.device("cpu"))
    assert tables.norm is not None
    return tables.norm, tables.rows(ids)


@needs_c
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("d", "windows", "length"),
    [(8, 1, 1), (63, 5, 41), (64, 2, 600), (100, 700, 3), (768, 3, 1030)],
    ids=lambda value: str(value),
)
def test_both_bodies_give_the_same_bits_and_are_near_float64(
    d: int, windows: int, length: int, norm: Norm, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, rows = case(d, norm, windows, length, offset)
    by_c = squares(tables, rows)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert torch.equal(by_c, squares(tables, rows))
    x = tables.token_features[rows.long()] + tables.position_features[:length]
    means = tables.means(rows)
    if means is not None:
        x -= means.unsqueeze(2)
    exact = x.double().square().sum(2)
    assert float(((by_c - exact) / exact).abs().max()) < 1e-14


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_square_hangs_on_the_others(threads: int, norm: Norm) -> None:
    tables, rows = case(100, norm, 90, 40, 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = squares(tables, rows)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat([squares(tables, row) for row in torch.split(rows, 1)]))


def test_rows_may_be_of_any_strides() -> None:
    tables, rows = case(64, "layernorm", 30, 30, 0.0)
    assert torch.equal(squares(tables, rows.t()), squares(tables, rows.t().contiguous()))
