"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter.

The interpreter computes bfloat16 wrongly, so bfloat16 is tested on a GPU only; that it compiles as
it should is tested everywhere, in test_compiled.py.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import direct, direct_triton, reference
from kernels.errors import DeviceError
from kernels.layer import DTYPES, FirstLayer, Norm
from kernels.packed import PackedLayer, pack
from tests.helpers import (
    DEVICE,
    FINISHED,
    assert_within_rule,
    nan_outputs,
    random_ids,
    random_layer,
)

RUNNABLE = ["float32", "float16", *(["bfloat16"] if DEVICE.type == "cuda" else [])]
SHAPES = [
    pytest.param(17, 3, 1, 5, id="d17-H3-Hk1-Dh5"),
    pytest.param(64, 4, 4, 16, id="d64-H4-Hk4-Dh16"),
    pytest.param(100, 5, 5, 7, id="d100-H5-Hk5-Dh7"),
    pytest.param(768, 12, 4, 64, id="d768-H12-Hk4-Dh64"),
]


def on_gpu(layer: FirstLayer) -> PackedLayer:
    """The layer packed as for a GPU, in its own dtype, also where the interpreter stands in."""
    packed = pack(layer, DEVICE)

    def narrow(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(layer.dtype)

    return replace(
        packed,
        weight=packed.weight.to(layer.dtype),
        bias=narrow(packed.bias),
        position=narrow(packed.position),
    )


def project(layer: FirstLayer, ids: Tensor) -> list[Tensor]:
    outputs = nan_outputs(layer.on(DEVICE), *ids.shape)
    direct_triton.project(on_gpu(layer), ids.to(DEVICE), *outputs)
    return [output.cpu() for output in outputs]


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("context_length", [1, 16, 63], ids=lambda t: f"T{t}")
@pytest.mark.parametrize(("d", "heads", "kv_heads", "head_dim"), SHAPES)
def test_error_against_float64(
    d: int, heads: int, kv_heads: int, head_dim: int, context_length: int, norm: Norm, dtype: str
) -> None:
    layer = random_layer(
        d=d, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        context_length=context_length, norm=norm,
    ).to(DTYPES[dtype])  # fmt: skip
    # Enough tokens that the largest error of either way is no accident of a few numbers.
    ids = random_ids(max(2, 128 // context_length), context_length)
    assert_within_rule(project(layer, ids), layer, ids)


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("what", FINISHED)
def test_q_and_k_are_normalised_and_turned(what: dict[str, Any], dtype: str) -> None:
    layer = random_layer(context_length=37, **what).to(DTYPES[dtype])
    ids = random_ids(4, 37)
    assert_within_rule(project(layer, ids), layer, ids)


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("d", [100, 768])
def test_a_large_mean_costs_no_accuracy(d: int, norm: Norm, dtype: str) -> None:
    layer = random_layer(d=d, heads=1, context_length=7, norm=norm, offset=100.0)
    layer = layer.to(DTYPES[dtype])
    ids = random_ids(18, 7)
    assert_within_rule(project(layer, ids), layer, ids)


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize(("d", "heads", "kv_heads", "head_dim"), SHAPES)
def test_whole_numbers_are_exact(
    d: int, heads: int, kv_heads: int, head_dim: int, dtype: str
) -> None:
    layer = random_layer(d=d, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    whole = {name: (tensor * 2).round() for name, tensor in layer.tensors().items()}
    for name in ("q_weight", "k_weight", "v_weight"):
        # Sparse signs keep every sum within the whole numbers that float16 holds.
        signs = getattr(layer, name).sign()
        whole[name] = signs * (torch.rand(signs.shape, generator=torch.Generator()) < 0.3)
    layer = replace(layer, **whole).to(DTYPES[dtype])  # type: ignore[arg-type]
    ids = random_ids(3, 16)
    exact = reference.project(reference.in_float64(layer), ids)
    for expected, found in zip(exact, project(layer, ids), strict=True):
        assert float(expected.abs().max()) < 256
        assert torch.equal(expected, found.double())


@pytest.mark.parametrize("windows", [20, 43])
def test_every_block_of_many_is_written(windows: int) -> None:
    # 20 and 43 blocks of tokens, so several groups and a last one in part, and two of columns.
    layer = random_layer(d=17, heads=3, kv_heads=3, head_dim=9, context_length=63)
    ids = random_ids(windows, 63)
    assert_within_rule(project(layer, ids), layer, ids)


def test_heads_may_lie_further_apart_than_32_bits_reach() -> None:
    layer = random_layer(d=16, heads=4, kv_heads=1, context_length=2).to(torch.float16)
    ids = random_ids(1, 2)
    expected, k, v = project(layer, ids)
    apart = 2**30
    # Only the pages that are written take memory.
    sparse = torch.empty(3 * apart + 32, device=DEVICE, dtype=torch.float16)
    far = sparse.as_strided((1, 4, 2, 16), (16, apart, 16, 1))
    direct_triton.project(on_gpu(layer), ids.to(DEVICE), far, k.to(DEVICE), v.to(DEVICE))
    assert torch.equal(expected, far.cpu())


def test_outputs_that_the_kernels_cannot_write_are_refused() -> None:
    layer = random_layer()
    ids = random_ids(2, 16)
    q, k, v = nan_outputs(layer, 2, 16)
    packed = on_gpu(layer)
    backwards = torch.empty(2, 4, 16, 16).transpose(2, 3)
    with pytest.raises(ValueError, match="last dimension"):
        direct_triton.project(packed, ids, q, backwards, v)
    with pytest.raises(ValueError, match="contiguous"):
        direct_triton.embed(packed, ids, torch.empty(2, 64, 16).transpose(1, 2))
    with pytest.raises(ValueError, match="16 positions"):
        direct_triton.project(packed, random_ids(2, 17), q, k, v)


# The interpreter computes with numpy, which warns of it.
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_value_that_overflows_stays_alone_where_a_part_of_a_head_turns() -> None:
    layer = random_layer(context_length=5, rotary=4).to(torch.float16)
    assert layer.q_bias is not None
    q_bias = layer.q_bias.clone()
    q_bias[12] = 65504.0
    layer = replace(layer, q_bias=q_bias, embedding=layer.embedding * 100)
    ids = random_ids(3, 5)
    expected = nan_outputs(layer, 3, 5)
    direct.project(pack(layer, torch.device("cpu")), ids, *expected)
    q, *_ = project(layer, ids)
    assert bool(torch.isinf(expected[0]).any())
    assert torch.equal(torch.isinf(expected[0]), torch.isinf(q))
    assert not bool(torch.isnan(q).any())


def test_heads_of_one_value_can_be_normalised() -> None:
    # So many heads that no token has but small values, whose one error would be the largest of all.
    layer = random_layer(heads=33, head_dim=1, qk_norm="all", positions=False)
    ids = random_ids(9, 16)
    assert_within_rule(project(layer, ids), layer, ids)


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_absent_parameters_are_absent_from_the_function(norm: Norm) -> None:
    layer = random_layer(norm=norm, positions=False, biases=False)
    layer = replace(layer, norm_weight=None, norm_bias=None, embedding_scale=2.5)
    ids = random_ids(8, 16)
    assert_within_rule(project(layer, ids), layer, ids)


def test_strided_outputs_get_the_same_values_and_nothing_else_is_touched() -> None:
    layer = random_layer(d=17, heads=3, kv_heads=1, head_dim=5, context_length=9)
    ids = random_ids(5, 9)
    expected = project(layer, ids)
    storage = [torch.full((5, 9, 7, 5), torch.nan, device=DEVICE) for _ in "qkv"]
    views = [s[:, :, : e.shape[1]].transpose(1, 2) for s, e in zip(storage, expected, strict=True)]
    direct_triton.project(on_gpu(layer), ids.to(DEVICE), *views)
    for view, whole, values in zip(views, storage, expected, strict=True):
        assert torch.equal(values, view.cpu())
        assert bool(torch.isnan(whole[:, :, values.shape[1] :]).all())


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("context_length", [1, 63])
@pytest.mark.parametrize("d", [17, 64, 200])
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no-positions"])
def test_features_are_the_sum_rounded_once(
    positions: bool, d: int, context_length: int, dtype: str
) -> None:
    layer = random_layer(d=d, context_length=context_length, positions=positions)
    layer = replace(layer.to(DTYPES[dtype]), embedding_scale=2.0)
    ids = random_ids(3, context_length)
    shape = (3, context_length, d)
    out = torch.full(shape, torch.nan, dtype=layer.dtype, device=DEVICE)
    direct_triton.embed(on_gpu(layer), ids.to(DEVICE), out)
    exact = reference.embed(reference.in_float64(layer), ids)
    assert torch.equal(exact.float().to(layer.dtype), out.cpu())


def test_no_windows_is_no_work() -> None:
    layer = random_layer()
    assert [out.numel() for out in project(layer, random_ids(1, 16)[:0])] == [0, 0, 0]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter stands in only without a GPU")
def test_the_interpreter_refuses_bfloat16() -> None:
    layer = random_layer().to(torch.bfloat16)
    with pytest.raises(DeviceError, match="bfloat16"):
        project(layer, random_ids(2, 16))


@pytest.mark.parametrize(
    ("dtype", "d", "head_dim", "shared_memory", "expected"),
    [
        (torch.float32, 768, 64, 232448, direct_triton.FLOAT_TILE),
        (torch.bfloat16, 768, 64, 232448, direct_triton.HALF_TILE),
        (torch.float16, 64, 16, 166912, direct_triton.HALF_TILE),
        (torch.bfloat16, 768, 64, 101376, direct_triton.SMALL_TILE),
        (torch.bfloat16, 100, 10, 232448, direct_triton.ODD_TILE),
        (torch.float32, 768, 24, 232448, direct_triton.ODD_TILE),
    ],
)
def test_the_tile_fits_the_gpu_and_the_widths(
    dtype: torch.dtype, d: int, head_dim: int, shared_memory: int, expected: direct_triton.Tile
) -> None:
    assert expected == direct_triton.choose_tile(dtype, d, head_dim, shared_memory)
