from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.layer import Norm
from kernels.lengths import lengths
from kernels.tables import NormTables, build
from tests.helpers import random_ids, random_layer

NORMS: list[Norm] = ["layernorm", "rmsnorm"]


def case(d: int, norm: Norm, windows: int, length: int, offset: float) -> tuple[NormTables, Tensor]:
    layer = random_layer(d=d, norm=norm, context_length=length)
    layer = replace(layer, embedding=layer.embedding + offset)
    ids = random_ids(windows, length)
    tables = build(layer, torch.unique(ids).to(torch.int32), torch.device("cpu"))
    assert tables.norm is not None
    return tables.norm, tables.rows(ids)


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
    by_c = lengths(tables, rows)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert torch.equal(by_c, lengths(tables, rows))
    # Of the same float32 x, all that is rounded is the result.
    x = tables.token_features[rows.long()] + tables.position_features[:length]
    means = tables.means(rows)
    if means is not None:
        x -= means.unsqueeze(2)
    exact = x.double().square().sum(2).sqrt()
    assert float(((by_c.double() - exact) / exact).abs().max()) < 2**-23


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_length_hangs_on_the_others(threads: int, norm: Norm) -> None:
    tables, rows = case(100, norm, 90, 40, 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = lengths(tables, rows)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat([lengths(tables, row) for row in torch.split(rows, 1)]))
