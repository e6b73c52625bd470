from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels import direct, reference
from kernels.layer import DTYPES, Norm
from kernels.packed import pack
from tests.helpers import FINISHED, assert_within_rule, nan_outputs, random_ids, random_layer

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "offset100"])
@pytest.mark.parametrize(
    ("windows", "context_length", "d", "heads", "kv_heads", "head_dim"),
    [
        pytest.param(3, 1, 17, 3, 1, 5, id="W3-T1-d17"),
        pytest.param(300, 16, 64, 4, 4, 16, id="W300-T16-d64"),
        pytest.param(2, 63, 100, 5, 5, 7, id="W2-T63-d100"),
        pytest.param(2, 2500, 64, 4, 2, 16, id="W2-T2500-d64"),
        pytest.param(1, 600, 768, 12, 4, 64, id="W1-T600-d768"),
    ],
)
def test_error_against_float64(
    windows: int, context_length: int, d: int, heads: int, kv_heads: int, head_dim: int,
    norm: Norm, dtype: str, offset: float,
) -> None:  # fmt: skip
    layer = random_layer(
        d=d, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        context_length=context_length, norm=norm, offset=offset,
    ).to(DTYPES[dtype])  # fmt: skip
    ids = random_ids(windows, context_length)
    outputs = nan_outputs(layer, windows, context_length)
    direct.project(pack(layer, CPU), ids, *outputs)
    assert_within_rule(outputs, layer, ids)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("what", FINISHED)
def test_q_and_k_are_normalised_and_turned(what: dict[str, Any], dtype: str) -> None:
    layer = random_layer(context_length=37, **what).to(DTYPES[dtype])
    ids = random_ids(9, 37)
    outputs = nan_outputs(layer, 9, 37)
    direct.project(pack(layer, CPU), ids, *outputs)
    assert_within_rule(outputs, layer, ids)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("context_length", [1, 63, 2500])
def test_features_are_the_sum_rounded_once(context_length: int, dtype: str) -> None:
    layer = random_layer(d=17, head_dim=5, context_length=context_length).to(DTYPES[dtype])
    layer = replace(layer, embedding_scale=2.0)
    ids = random_ids(2, context_length)
    out = torch.full((2, context_length, 17), torch.nan, dtype=layer.dtype)
    direct.embed(pack(layer, CPU), ids, out)
    exact = reference.embed(reference.in_float64(layer), ids)
    assert torch.equal(exact.float().to(layer.dtype), out)


def test_strided_outputs_get_the_same_values_and_nothing_else_is_touched() -> None:
    layer = random_layer(kv_heads=2)
    ids = random_ids(5, 16)
    expected = nan_outputs(layer, 5, 16)
    direct.project(pack(layer, CPU), ids, *expected)
    storage = [torch.full((5, 16, 7, 16), torch.nan) for _ in "qkv"]
    views = [s[:, :, : e.shape[1]].transpose(1, 2) for s, e in zip(storage, expected, strict=True)]
    direct.project(pack(layer, CPU), ids, *views)
    for view, whole, values in zip(views, storage, expected, strict=True):
        assert torch.equal(values, view)
        assert bool(torch.isnan(whole[:, :, values.shape[1] :]).all())


@pytest.mark.parametrize("d", [64, 2048])
def test_bits_do_not_hang_on_threads(d: int) -> None:
    # MKL's product of d=2048 does.
    layer = random_layer(d=d, heads=32, head_dim=64, context_length=300)
    ids = random_ids(2, 300)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(nan_outputs(layer, 2, 300))
            direct.project(pack(layer, CPU), ids, *found[-1])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_no_windows_is_no_work() -> None:
    layer = random_layer()
    direct.project(pack(layer, CPU), random_ids(1, 16)[:0], *nan_outputs(layer, 0, 16))
