import math

import pytest
import torch

from kernels.positions import sinusoidal
from tests.helpers import GOLDEN


def test_the_notebooks_printed_values() -> None:
    table = sinusoidal(16, 64)
    for row, values in GOLDEN["positions_head"].items():
        assert values == pytest.approx(table[int(row), :3].tolist(), abs=5e-6)
    for row, value in GOLDEN["positions_column_62"].items():
        assert value == pytest.approx(float(table[int(row), 62]), rel=5e-5)


def test_equals_the_notebooks_code_to_the_last_bit() -> None:
    context_length, d_model = 1024, 768
    expected = torch.zeros(context_length, d_model)
    position = torch.arange(0, context_length, dtype=torch.float).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
    expected[:, 0::2] = torch.sin(position * div_term)
    expected[:, 1::2] = torch.cos(position * div_term)
    assert torch.equal(expected, sinusoidal(context_length, d_model))


@pytest.mark.parametrize(("context_length", "d_model"), [(1, 1), (7, 17), (63, 100)])
def test_follows_the_formula_at_odd_sizes(context_length: int, d_model: int) -> None:
    table = sinusoidal(context_length, d_model)
    assert (context_length, d_model) == tuple(table.shape)
    for p in range(context_length):
        for column in range(d_model):
            angle = p / 10000 ** ((column - column % 2) / d_model)
            exact = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert exact == pytest.approx(float(table[p, column]), abs=1e-5)
