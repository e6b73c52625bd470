"""Frequencies against transformers' own, bit for bit."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kernels import frequencies
from kernels.frequencies import Frequencies
from kernels.rotary import rotary_of


def config(head_dim: int, positions: int, **parameters: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=positions,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )  # fmt: skip


def theirs(kind: str, head_dim: int, length: int, **parameters: Any) -> Frequencies:
    made = config(head_dim, 64, rope_type=kind, **parameters)
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](made, seq_len=torch.tensor(length))
    return Frequencies(inverse, factor)


def assert_equal(ours: Frequencies, expected: Frequencies) -> None:
    assert torch.equal(expected.inverse, ours.inverse)
    assert ours.inverse.dtype == torch.float32
    assert ours.factor == expected.factor


@pytest.mark.parametrize("dims", [2, 6, 64, 80, 128])
def test_plain(dims: int) -> None:
    made = LlamaRotaryEmbedding(config(dims, 64, rope_type="default"))
    assert torch.equal(made.inv_freq, frequencies.inverse_frequencies(10000.0, dims))
    cos, sin = made(torch.empty(1), torch.arange(50)[None])
    rotary = rotary_of(made.inv_freq, 50)
    assert torch.equal(cos[0, :, : dims // 2], rotary.cos)
    assert torch.equal(sin[0, :, : dims // 2], rotary.sin)


@pytest.mark.parametrize("dims", [6, 64])
@pytest.mark.parametrize("factor", [1.0, 3.5, 8])
def test_linear(factor: float, dims: int) -> None:
    ours = frequencies.linear(10000.0, dims, factor=factor)
    assert_equal(ours, theirs("linear", dims, 64, factor=factor))


@pytest.mark.parametrize("dims", [6, 64])
@pytest.mark.parametrize("length", [1, 64, 65, 200])
def test_dynamic(length: int, dims: int) -> None:
    ours = frequencies.dynamic(10000.0, dims, factor=2.5, context_length=length, trained_length=64)
    assert_equal(ours, theirs("dynamic", dims, length, factor=2.5))


@pytest.mark.parametrize("dims", [6, 64, 128])
@pytest.mark.parametrize("trained", [16, 8192])
def test_llama3(trained: int, dims: int) -> None:
    ours = frequencies.llama3(
        10000.0, dims, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, trained_length=trained
    )
    expected = theirs(
        "llama3", dims, 64, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=trained,
    )  # fmt: skip
    assert_equal(ours, expected)


@pytest.mark.parametrize("dims", [6, 64, 128])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="plain"),
        pytest.param({"attention_factor": 1.3}, id="attention-factor"),
        pytest.param({"mscale": 0.7, "mscale_all_dim": 1.1}, id="mscale"),
        pytest.param({"truncate": False, "beta_fast": 20.0, "beta_slow": 2.0}, id="betas"),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_yarn(factor: float, more: dict[str, Any], dims: int) -> None:
    options = {
        "attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None,
        "mscale_all_dim": None, "truncate": True, **more,
    }  # fmt: skip
    ours = frequencies.yarn(10000.0, dims, factor=factor, trained_length=32, **options)
    made = theirs("yarn", dims, 64, factor=factor, original_max_position_embeddings=32, **more)
    assert_equal(ours, made)


@pytest.mark.parametrize("length", [32, 33])
@pytest.mark.parametrize("attention_factor", [None, 1.2])
def test_longrope(attention_factor: float | None, length: int) -> None:
    short, long = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.3 * i for i in range(8)]
    ours = frequencies.longrope(
        10000.0, 16, short_factor=short, long_factor=long, attention_factor=attention_factor,
        factor=2.0, context_length=length, trained_length=32,
    )  # fmt: skip
    expected = theirs(
        "longrope", 16, length, short_factor=short, long_factor=long, factor=2.0,
        attention_factor=attention_factor, original_max_position_embeddings=32,
    )  # fmt: skip
    assert_equal(ours, expected)
