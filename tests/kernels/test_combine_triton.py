"""The combining kernel: on a GPU where there is one, else in Triton's interpreter.

The interpreter rounds to bfloat16 wrongly, so bfloat16 is tested on a GPU only.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import combine, combine_triton
from kernels.errors import DeviceError
from kernels.layer import DTYPES, FirstLayer, Norm
from kernels.tables import Tables, build
from tests.helpers import (
    DEVICE,
    FINISHED,
    assert_within_rule,
    nan_outputs,
    random_ids,
    random_layer,
)

RUNNABLE = ["float32", "float16", *(["bfloat16"] if DEVICE.type == "cuda" else [])]
NORMS: list[Norm] = ["none", "layernorm", "rmsnorm"]
SHAPES = [
    pytest.param(17, 3, 1, 5, id="d17-H3-Hk1-Dh5"),
    pytest.param(64, 4, 4, 16, id="d64-H4-Hk4-Dh16"),
    pytest.param(100, 5, 5, 7, id="d100-H5-Hk5-Dh7"),
    pytest.param(768, 12, 4, 64, id="d768-H12-Hk4-Dh64"),
]


def tables_for(layer: FirstLayer, ids: Tensor) -> Tables:
    return build(layer, torch.unique(ids).to(torch.int32), DEVICE)


def combined(layer: FirstLayer, ids: Tensor) -> list[Tensor]:
    tables = tables_for(layer, ids)
    outputs = nan_outputs(layer.on(DEVICE), *ids.shape)
    combine_triton.combine(tables, tables.rows(ids).to(DEVICE), *outputs)
    return [output.cpu() for output in outputs]


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "offset100"])
@pytest.mark.parametrize("context_length", [1, 16, 63], ids=lambda t: f"T{t}")
@pytest.mark.parametrize(("d", "heads", "kv_heads", "head_dim"), SHAPES)
def test_error_against_float64(
    d: int, heads: int, kv_heads: int, head_dim: int, context_length: int, offset: float,
    norm: Norm, dtype: str,
) -> None:  # fmt: skip
    layer = random_layer(
        d=d, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        context_length=context_length, norm=norm, offset=offset,
    ).to(DTYPES[dtype])  # fmt: skip
    ids = random_ids(max(2, 200 // context_length), context_length)
    assert_within_rule(combined(layer, ids), layer, ids)


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no-positions"])
def test_without_a_norm_the_bits_are_those_of_the_cpu(positions: bool, dtype: str) -> None:
    layer = random_layer(positions=positions, context_length=37).to(DTYPES[dtype])
    ids = random_ids(5, 37)
    tables = tables_for(layer, ids).on(torch.device("cpu"))
    expected = nan_outputs(layer, 5, 37)
    combine.combine(tables, tables.rows(ids), *expected)
    outputs = nan_outputs(layer.on(DEVICE), 5, 37)
    placed = tables.on(DEVICE)
    combine_triton.combine(placed, placed.rows(ids).to(DEVICE), *outputs)
    for one, other in zip(expected, outputs, strict=True):
        assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("what", FINISHED)
def test_q_and_k_are_normalised_and_turned(what: dict[str, Any], dtype: str) -> None:
    layer = random_layer(context_length=37, **what).to(DTYPES[dtype])
    ids = random_ids(4, 37)
    tables = tables_for(layer, ids).on(torch.device("cpu"))
    expected = nan_outputs(layer, 4, 37)
    combine.combine(tables, tables.rows(ids), *expected)
    for name, one, other in zip("qkv", expected, combined(layer, ids), strict=True):
        assert torch.equal(one, other), f"{name} has other bits than on the CPU"
    assert_within_rule(expected, layer, ids)


def test_a_zero_keeps_its_sign_where_nothing_turns() -> None:
    layer = random_layer(context_length=5, rotary=4, biases=False)
    tables = tables_for(layer, random_ids(3, 5))
    tables = replace(tables, token_table=torch.full_like(tables.token_table, -0.0))
    rows = tables.rows(random_ids(3, 5)).to(DEVICE)
    q, k, v = nan_outputs(layer.on(DEVICE), 3, 5)
    combine_triton.combine(tables, rows, q, k, v)
    assert bool(torch.signbit(v).all())
    assert bool(torch.signbit(q[..., 4:]).all())


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_a_position_that_cancels_a_token_costs_no_accuracy(norm: Norm) -> None:
    layer = random_layer(norm=norm, context_length=40)
    assert layer.position is not None
    embedding = layer.embedding.clone()
    embedding[5] = 1e-4 * embedding[5] - layer.position[3]
    layer = replace(layer, embedding=embedding)
    ids = random_ids(12, 40)
    ids[2, 3] = 5
    assert_within_rule(combined(layer, ids), layer, ids)


@pytest.mark.parametrize("norm", NORMS)
def test_two_batchings_give_the_same_bits(norm: Norm) -> None:
    layer = random_layer(norm=norm, context_length=37, kv_heads=2)
    ids = random_ids(7, 37)
    tables = tables_for(layer, ids)
    together = combined(layer, ids)
    for rows in torch.split(torch.arange(7).flip(0), 3):
        outputs = nan_outputs(layer.on(DEVICE), len(rows), 37)
        combine_triton.combine(tables, tables.rows(ids[rows]).to(DEVICE), *outputs)
        for whole, part in zip(together, outputs, strict=True):
            assert torch.equal(whole[rows], part.cpu())


def test_strided_outputs_get_the_same_values_and_nothing_else_is_touched() -> None:
    layer = random_layer(kv_heads=2)
    ids = random_ids(5, 16)
    expected = combined(layer, ids)
    storage = [torch.full((5, 16, 7, 16), torch.nan, device=DEVICE) for _ in "qkv"]
    views = [s[:, :, : e.shape[1]].transpose(1, 2) for s, e in zip(storage, expected, strict=True)]
    tables = tables_for(layer, ids)
    combine_triton.combine(tables, tables.rows(ids).to(DEVICE), *views)
    for view, whole, values in zip(views, storage, expected, strict=True):
        assert torch.equal(values, view.cpu())
        assert bool(torch.isnan(whole[:, :, values.shape[1] :]).all())


def test_outputs_that_the_kernel_cannot_write_are_refused() -> None:
    layer = random_layer()
    ids = random_ids(2, 16)
    tables = tables_for(layer, ids)
    rows = tables.rows(ids).to(DEVICE)
    q, k, v = nan_outputs(layer.on(DEVICE), 2, 16)
    with pytest.raises(ValueError, match="last dimension"):
        combine_triton.combine(tables, rows, q, torch.empty(2, 4, 16, 16).transpose(2, 3), v)
    with pytest.raises(ValueError, match="17 tokens a window, but 16 positions"):
        combine_triton.combine(tables, rows[:, :1].expand(-1, 17), q, k, v)


def test_no_windows_is_no_work() -> None:
    layer = random_layer()
    tables = tables_for(layer, random_ids(2, 16))
    outputs = nan_outputs(layer.on(DEVICE), 0, 16)
    combine_triton.combine(tables, random_ids(2, 16)[:0].to(DEVICE), *outputs)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter stands in only without a GPU")
def test_the_interpreter_refuses_bfloat16() -> None:
    layer = random_layer().to(torch.bfloat16)
    with pytest.raises(DeviceError, match="bfloat16"):
        combined(layer, random_ids(2, 16))
