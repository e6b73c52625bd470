import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels import reference
from kernels.layer import FirstLayer, Norm
from tests.helpers import random_ids, random_layer

Array = NDArray[np.float64]


def by_hand(layer: FirstLayer, ids: torch.Tensor) -> tuple[Array, Array, Array]:
    """The function written out in numpy, one token at a time."""
    parameters = {name: tensor.double().numpy() for name, tensor in layer.tensors().items()}
    windows, length = ids.shape
    groups = (("q", layer.heads), ("k", layer.kv_heads), ("v", layer.kv_heads))
    out = {n: np.empty((windows, h, length, layer.head_dim)) for n, h in groups}
    for w in range(windows):
        for p in range(length):
            x = layer.embedding_scale * parameters["embedding"][int(ids[w, p])]
            if "position" in parameters:
                x = x + parameters["position"][p]
            if layer.norm == "layernorm":
                x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + layer.eps)
            if layer.norm == "rmsnorm":
                x = x / np.sqrt((x**2).mean() + layer.eps)
            if "norm_weight" in parameters:
                x = x * (parameters["norm_weight"] + layer.norm_offset)
            x = x + parameters.get("norm_bias", 0.0)
            for name, heads in groups:
                y = parameters[f"{name}_weight"] @ x + parameters.get(f"{name}_bias", 0.0)
                out[name][w, :, p] = y.reshape(heads, layer.head_dim)
    return out["q"], out["k"], out["v"]


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("norm_offset", [0.0, 1.0])
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no-positions"])
def test_float64_equals_the_function_written_out(
    norm: Norm, positions: bool, norm_offset: float
) -> None:
    layer = random_layer(
        d=17, heads=6, kv_heads=2, head_dim=5, norm=norm, positions=positions,
        norm_offset=norm_offset,
    )  # fmt: skip
    layer = reference.in_float64(layer)
    ids = random_ids(2, 9)
    for expected, found in zip(by_hand(layer, ids), reference.project(layer, ids), strict=True):
        assert expected == pytest.approx(found.numpy(), abs=1e-12)


def test_the_error_rule_allows_twice_torchs_error_or_the_last_place() -> None:
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    torchs = torch.tensor([1.0, -4.25])
    assert reference.allowed_error(torchs, truth) == 0.5
    assert reference.allowed_error(truth.float(), truth) == 4 * torch.finfo(torch.float32).eps / 2
    assert reference.largest_error(torch.tensor([1.125, -4.0]), truth) == 0.125


def test_a_value_beyond_the_dtype_is_right_as_infinity_and_no_measure() -> None:
    truth = torch.tensor([1.0, 1e6, -1e6], dtype=torch.float64)
    found = torch.tensor([1.0, torch.inf, -torch.inf], dtype=torch.float16)
    assert reference.largest_error(found, truth) == 0
    assert reference.largest_error(-found, truth) == torch.inf
    assert np.isnan(reference.largest_error(found * 0, truth))
    assert reference.allowed_error(found, truth) < torch.inf
