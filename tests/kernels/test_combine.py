from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import combine, combine_c, combine_torch, direct, reference, squares
from kernels.layer import DTYPES, FirstLayer, Norm
from kernels.packed import pack
from kernels.tables import Tables, build
from tests.helpers import (
    FINISHED,
    assert_within_rule,
    nan_outputs,
    needs_c,
    random_ids,
    random_layer,
)

CPU = torch.device("cpu")
BODIES = [pytest.param("C", marks=needs_c), "torch-cpu"]
NORMS: list[Norm] = ["none", "layernorm", "rmsnorm"]


def take_body(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Combine by one of BODIES from here on; C must be there."""
    if name == "torch-cpu":
        monkeypatch.setenv("CC", "no-such-compiler")
    found, _ = combine.body(build(random_layer(), torch.arange(9).int(), CPU), torch.float32)
    assert found == name


def tables_for(layer: FirstLayer, ids: Tensor) -> Tables:
    return build(layer, torch.unique(ids).to(torch.int32), CPU)


def combined(layer: FirstLayer, ids: Tensor) -> list[Tensor]:
    tables = tables_for(layer, ids)
    outputs = nan_outputs(layer, *ids.shape)
    combine.combine(tables, tables.rows(ids), *outputs)
    return outputs


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("of_e", "of_p"), [(0, 0), (100, 100), (100, -100)], ids=["centred", "offset100", "opposed"]
)
@pytest.mark.parametrize(
    ("windows", "context_length", "d", "heads", "kv_heads", "head_dim"),
    [
        pytest.param(300, 1, 17, 3, 1, 5, id="W300-T1-d17"),
        pytest.param(70, 16, 64, 4, 4, 16, id="W70-T16-d64"),
        pytest.param(9, 63, 100, 5, 5, 7, id="W9-T63-d100"),
        pytest.param(1, 5000, 64, 4, 2, 16, id="W1-T5000-d64"),
        pytest.param(2, 600, 768, 12, 4, 64, id="W2-T600-d768"),
    ],
)
def test_error_against_float64(
    windows: int, context_length: int, d: int, heads: int, kv_heads: int, head_dim: int,
    norm: Norm, dtype: str, of_e: float, of_p: float,
) -> None:  # fmt: skip
    layer = random_layer(
        d=d, heads=heads, kv_heads=kv_heads, head_dim=head_dim, context_length=context_length,
        norm=norm,
    )  # fmt: skip
    assert layer.position is not None
    layer = replace(layer, embedding=layer.embedding + of_e, position=layer.position + of_p)
    layer = layer.to(DTYPES[dtype])
    ids = random_ids(windows, context_length)
    assert_within_rule(combined(layer, ids), layer, ids)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("what", FINISHED)
def test_q_and_k_are_normalised_and_turned(what: dict[str, Any], dtype: str) -> None:
    layer = random_layer(context_length=37, **what).to(DTYPES[dtype])
    ids = random_ids(9, 37)
    assert_within_rule(combined(layer, ids), layer, ids)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    d=st.integers(8, 130),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 3), (5, 1)]),
    head_dim=st.integers(5, 24),
    context_length=st.integers(1, 70),
    norm=st.sampled_from(NORMS),
    positions=st.booleans(),
    biases=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    scale=st.sampled_from([1.0, 0.25, 11.3]),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 99),
)
def test_direct_and_tables_are_both_within_the_rule(
    d: int, heads: tuple[int, int], head_dim: int, context_length: int, norm: Norm,
    positions: bool, biases: bool, offset: float, scale: float, dtype: str, seed: int,
) -> None:  # fmt: skip
    layer = random_layer(
        d=d, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, context_length=context_length,
        norm=norm, positions=positions, biases=biases, offset=offset, seed=seed,
    )  # fmt: skip
    layer = replace(layer, embedding_scale=scale).to(DTYPES[dtype])
    # Enough tokens that the largest error of either way is no accident of a few numbers.
    ids = random_ids(-(-400 // context_length), context_length)
    assert_within_rule(combined(layer, ids), layer, ids)
    outputs = nan_outputs(layer, *ids.shape)
    direct.project(pack(layer, CPU), ids, *outputs)
    assert_within_rule(outputs, layer, ids)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    d=st.integers(8, 130),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 3), (5, 1)]),
    head_dim=st.integers(5, 24),
    turned=st.floats(0, 1),
    interleaved=st.booleans(),
    qk_norm=st.sampled_from(["none", "head", "all"]),
    context_length=st.integers(1, 70),
    norm=st.sampled_from(NORMS),
    norm_offset=st.sampled_from([0.0, 1.0]),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 99),
)
def test_direct_and_tables_are_both_within_the_rule_where_q_and_k_turn(
    d: int, heads: tuple[int, int], head_dim: int, turned: float, interleaved: bool, qk_norm: str,
    context_length: int, norm: Norm, norm_offset: float, dtype: str, seed: int,
) -> None:  # fmt: skip
    layer = random_layer(
        d=d, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, context_length=context_length,
        norm=norm, norm_offset=norm_offset, positions=False, rotary=2 * int(turned * head_dim / 2),
        interleaved=interleaved, qk_norm=qk_norm, seed=seed,
    ).to(DTYPES[dtype])  # fmt: skip
    ids = random_ids(-(-400 // context_length), context_length)
    assert_within_rule(combined(layer, ids), layer, ids)
    outputs = nan_outputs(layer, *ids.shape)
    direct.project(pack(layer, CPU), ids, *outputs)
    assert_within_rule(outputs, layer, ids)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("nearness", [1e-1, 1e-3, 1e-5])
def test_a_position_that_cancels_a_token_costs_no_accuracy(nearness: float, norm: Norm) -> None:
    layer = random_layer(norm=norm, context_length=40)
    assert layer.position is not None
    embedding = layer.embedding.clone()
    embedding[5] = nearness * embedding[5] - layer.position[3]
    layer = replace(layer, embedding=embedding)
    ids = random_ids(12, 40)
    ids[2, 3] = 5
    assert_within_rule(combined(layer, ids), layer, ids)
    # Were it only gathered and added, it would not be.
    tables = tables_for(layer, ids)
    assert tables.position_table is not None
    row = tables.rows(ids)[2, 3]
    x = reference.embed(reference.in_float64(layer), ids)[2, 3]
    weight = torch.cat([layer.q_weight, layer.k_weight, layer.v_weight]).double()
    centred = x - x.mean() if norm == "layernorm" else x
    assert layer.norm_weight is not None
    exact = weight @ (centred * layer.norm_weight)
    plain = (tables.token_table[:, row] + tables.position_table[:, 3]).flatten().double()
    if nearness < 1e-2:
        assert float((plain - exact).abs().max() / exact.abs().max()) > 1e-5


@pytest.mark.parametrize(
    "what",
    [
        *(pytest.param({"norm": norm}, id=norm) for norm in NORMS),
        pytest.param({"positions": False}, id="no-positions"),
        *FINISHED,
    ],
)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("body", BODIES)
def test_two_batchings_give_the_same_bits(
    body: str, what: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_body(body, monkeypatch)
    layer = random_layer(context_length=37, **what).to(DTYPES[dtype])
    ids = random_ids(23, 37)
    tables = tables_for(layer, ids)
    together = nan_outputs(layer, 23, 37)
    combine.combine(tables, tables.rows(ids), *together)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(3))
    apart = nan_outputs(layer, 23, 37)
    monkeypatch.setattr(combine_c, "PART_BYTES", 5000)
    monkeypatch.setattr(combine_torch, "BLOCK_BYTES", 5000)
    for rows in torch.split(order, 5):
        outputs = nan_outputs(layer, len(rows), 37)
        combine.combine(tables, tables.rows(ids[rows]), *outputs)
        for whole, part in zip(apart, outputs, strict=True):
            whole[rows] = part
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("block_bytes", [1 << 19, 5000, 1], ids=lambda size: f"{size}-bytes")
@pytest.mark.parametrize("windows", [1, 5, 40])
def test_strided_outputs_get_the_same_values_and_nothing_else_is_touched(
    windows: int, block_bytes: int, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer(kv_heads=2)
    ids = random_ids(windows, 16)
    expected = combined(layer, ids)
    take_body(body, monkeypatch)
    monkeypatch.setattr(combine_c, "PART_BYTES", block_bytes)
    monkeypatch.setattr(combine_torch, "BLOCK_BYTES", block_bytes)
    storage = [torch.full((windows, 16, 7, 16), torch.nan) for _ in "qkv"]
    views = [s[:, :, : e.shape[1]].transpose(1, 2) for s, e in zip(storage, expected, strict=True)]
    tables = tables_for(layer, ids)
    combine.combine(tables, tables.rows(ids), *views)
    for view, whole, values in zip(views, storage, expected, strict=True):
        assert torch.equal(values, view)
        assert bool(torch.isnan(whole[:, :, values.shape[1] :]).all())


def test_no_windows_is_no_work() -> None:
    layer = random_layer()
    tables = build(layer, torch.arange(101, dtype=torch.int32), CPU)
    combine.combine(tables, random_ids(1, 16)[:0], *nan_outputs(layer, 0, 16))


def test_windows_longer_than_the_positions_are_refused() -> None:
    layer = random_layer()
    tables = build(layer, torch.arange(101, dtype=torch.int32), CPU)
    with pytest.raises(ValueError, match="17 tokens a window, but 16 positions"):
        combine.combine(tables, random_ids(2, 17), *nan_outputs(layer, 2, 17))


def test_a_row_that_is_not_there_is_refused() -> None:
    layer = random_layer()
    tables = build(layer, torch.arange(50, dtype=torch.int32), CPU)
    outputs = nan_outputs(layer, 1, 16)
    for wrong in (-1, 50):
        rows = torch.arange(16, dtype=torch.int32).view(1, 16)
        rows[0, 15] = wrong
        with pytest.raises(IndexError, match="but A has 50"):
            combine.combine(tables, rows, *outputs)
    assert all(bool(torch.isnan(output).all()) for output in outputs)


def test_outputs_whose_values_do_not_lie_side_by_side_are_written_too() -> None:
    layer = random_layer()
    ids = random_ids(3, 16)
    tables = tables_for(layer, ids)
    apart = [torch.full((*o.shape, 2), torch.nan) for o in nan_outputs(layer, 3, 16)]
    combine.combine(tables, tables.rows(ids), *(storage[..., 0] for storage in apart))
    for whole, expected in zip(apart, combined(layer, ids), strict=True):
        assert torch.equal(whole[..., 0], expected)
        assert bool(torch.isnan(whole[..., 1]).all())


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("norm", NORMS)
def test_rows_may_be_of_any_strides(norm: Norm, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_body(body, monkeypatch)
    layer = random_layer(norm=norm)
    ids = random_ids(16, 9).t()
    for one, other in zip(combined(layer, ids), combined(layer, ids.contiguous()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (3, 3, 16, 16), (3, 4, 15, 16), (3, 4, 16, 8)])
def test_an_output_of_another_shape_is_refused(
    shape: tuple[int, ...], body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_body(body, monkeypatch)
    layer = random_layer()
    ids = random_ids(3, 16)
    tables = tables_for(layer, ids)
    outputs = nan_outputs(layer, 3, 16)
    assert outputs[1].shape == (3, 4, 16, 16)
    outputs[1] = torch.empty(shape)
    with pytest.raises(ValueError, match="instead of"):
        combine.combine(tables, tables.rows(ids), *outputs)


@needs_c
def test_a_norm_needs_both_files_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(9, dtype=torch.int32)
    monkeypatch.setattr(squares, "function", lambda: (None, "not this one"))
    plain, normed = (build(random_layer(norm=norm), ids, CPU) for norm in NORMS[:2])
    assert combine.body(plain, torch.float32)[0] == "C"
    assert combine.body(normed, torch.float32) == ("torch-cpu", "not this one")
