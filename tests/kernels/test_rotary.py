import math

import pytest
import torch

from kernels.frequencies import inverse_frequencies
from kernels.layer import rotary_table
from kernels.rotary import Rotary, rotary_of, rotate_

PAIRS = [pytest.param(False, id="half-split"), pytest.param(True, id="interleaved")]


@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize(("head_dim", "turning"), [(2, 2), (10, 4), (11, 6), (16, 16)])
def test_turning_is_a_product_of_complex_numbers(
    head_dim: int, turning: int, interleaved: bool
) -> None:
    rotary = rotary_of(inverse_frequencies(100.0, turning), 9, 1.5, interleaved)
    x = torch.randn(2, 5, 3, head_dim, generator=torch.Generator().manual_seed(0))
    turned = x.clone()
    rotate_(turned, rotary, slice(4, 9))
    half = turning // 2
    first, second = (
        (x[..., 0:turning:2], x[..., 1:turning:2])
        if interleaved
        else (x[..., :half], x[..., half:turning])
    )
    angles = torch.arange(4, 9, dtype=torch.float64)[:, None] * 100.0 ** (
        -torch.arange(0, turning, 2, dtype=torch.float64) / turning
    )
    expected = torch.complex(first.double(), second.double()) * torch.polar(
        torch.full_like(angles, 1.5), angles
    ).unsqueeze(1)
    found = (
        (turned[..., 0:turning:2], turned[..., 1:turning:2])
        if interleaved
        else (turned[..., :half], turned[..., half:turning])
    )
    assert torch.allclose(expected.real, found[0].double(), atol=1e-5)
    assert torch.allclose(expected.imag, found[1].double(), atol=1e-5)
    assert torch.equal(x[..., turning:], turned[..., turning:])


def test_scores_hang_on_the_distance_of_positions_alone() -> None:
    rotary = rotary_table(32, 16)
    q = torch.randn(16, generator=torch.Generator().manual_seed(1)).repeat(1, 32, 1, 1)
    k = torch.randn(16, generator=torch.Generator().manual_seed(2)).repeat(1, 32, 1, 1)
    q, k = (x.view(1, 32, 1, 16).clone() for x in (q, k))
    rotate_(q, rotary, slice(0, 32))
    rotate_(k, rotary, slice(0, 32))
    scores = q[0, :, 0] @ k[0, :, 0].T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_the_plain_angles_are_those_of_the_paper() -> None:
    rotary = rotary_table(100, 8)
    for position in (0, 1, 99):
        for i in range(4):
            angle = position * 10000.0 ** (-2 * i / 8)
            assert float(rotary.cos[position, i]) == pytest.approx(math.cos(angle), abs=1e-5)
            assert float(rotary.sin[position, i]) == pytest.approx(math.sin(angle), abs=1e-5)


def test_a_device_holds_the_same_angles() -> None:
    rotary = Rotary(torch.ones(3, 2), torch.zeros(3, 2), True)
    moved = rotary.on(torch.device("meta"))
    assert moved.cos.device.type == moved.sin.device.type == "meta"
    assert moved.interleaved
