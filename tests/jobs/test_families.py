"""Every family against transformers: what its model's first attention function is given.

A small model of random parameters is saved as its makers save theirs. Truth is the saved model in
float64; torch's own error is that of the model in the dtype under test.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from jobs.checkpoints import load_checkpoint
from jobs.families import FAMILIES
from jobs.modelconfig import read_model
from tests.recorded import (
    VOCABULARY,
    T,
    assert_as_transformers,
    attention_scale,
    quiet,
    save_model,
)

GQA = {"num_attention_heads": 6, "num_key_value_heads": 2}
WIDE = {"head_dim": 16}  # beside hidden_size 48 and 4 heads
ODD = {"hidden_size": 45, "num_attention_heads": 3}
ODD_ROPE = {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1}
SHORT = {"max_position_embeddings": 32}


def rope(kind: str, theta: float = 10000.0, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


def factors(pairs: int) -> dict[str, Any]:
    return {
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0 + 0.7 * i for i in range(pairs)],
    }


LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {
        "plain": {},
        "odd": {"n_embd": 45, "n_head": 3},
        "untied": {"n_head": 1, "tie_word_embeddings": False, "scale_attn_weights": False},
    },
    "bert": {
        "plain": {},
        "odd": {**ODD, "layer_norm_eps": 1e-3},
        "one-type": {"type_vocab_size": 1},
    },
    "roberta": {
        "plain": {"pad_token_id": 1},
        "odd-pad-5": {**ODD, "pad_token_id": 5, "type_vocab_size": 1},
    },
    "distilbert": {
        "plain": {},
        "odd": {"dim": 45, "n_heads": 3},
        "sinusoidal": {"sinusoidal_pos_embds": True},
    },
    "gpt_neox": {
        "quarter": {"hidden_size": 64},
        "whole": rope("default", partial_rotary_factor=1.0),
        "half-linear": rope("linear", 500.0, partial_rotary_factor=0.5, factor=3.0),
        "dynamic": SHORT | rope("dynamic", partial_rotary_factor=0.5, factor=2.0),
        "no-bias": {"num_attention_heads": 3, "hidden_size": 48, "attention_bias": False},
        "odd": {
            "hidden_size": 33, "num_attention_heads": 3,
            **rope("default", partial_rotary_factor=0.4),
        },
    },
    "opt": {
        "plain": {},
        "odd-post-norm": {**ODD, "do_layer_norm_before": False},
        "no-bias": {"enable_bias": False},
        "no-affine": {"layer_norm_elementwise_affine": False, "tie_word_embeddings": False},
        "projected": {"word_embed_proj_dim": 20, "do_layer_norm_before": False},
    },
    "llama": {
        "plain": {},
        "grouped": {**GQA, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
        "wide-bias": {**WIDE, "attention_bias": True},
        "odd": ODD_ROPE,
        "linear": rope("linear", factor=2.5),
        "dynamic-beyond": SHORT | rope("dynamic", factor=2.0),
        "dynamic-within": rope("dynamic", factor=2.0),
        "llama3": rope("llama3", 500000.0, **LLAMA3),
        "yarn": rope("yarn", **YARN),
        "yarn-lengths": rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.2, truncate=False),
        "yarn-betas": rope("yarn", **YARN, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0),
        "longrope": rope("longrope", **factors(6), original_max_position_embeddings=32, factor=4.0),
    },
    "mistral": {
        "plain": {"num_key_value_heads": 4},
        "grouped-wide": {**GQA, **WIDE, "sliding_window": 8},
        "yarn": {"num_key_value_heads": 2, **rope("yarn", **YARN)},
    },
    "qwen2": {
        "plain": {"num_key_value_heads": 4},
        "grouped": {**GQA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        "yarn": {"num_key_value_heads": 1, **rope("yarn", 1000000.0, **YARN)},
    },
    "qwen3": {
        "plain": {"num_key_value_heads": 4, "head_dim": 12},
        "grouped-wide": {**GQA, **WIDE, "rms_norm_eps": 1e-3},
        "bias": {"num_key_value_heads": 2, "head_dim": 10, "attention_bias": True},
    },
    "gemma": {
        "plain": {"num_key_value_heads": 4, "head_dim": 12},
        "one-kv-wide": {"num_key_value_heads": 1, **WIDE, "attention_bias": True},
        # Else the norm hides the scale of the embedding.
        "odd-large-eps": {**ODD_ROPE, "head_dim": 10, "rms_norm_eps": 0.9},
    },
    "gemma2": {
        "plain": {"num_key_value_heads": 4, "head_dim": 12},
        "grouped-wide": {**GQA, **WIDE, "query_pre_attn_scalar": 13, "rms_norm_eps": 0.9},
        "linear": {"num_key_value_heads": 2, "head_dim": 12, **rope("linear", factor=2.0)},
    },
    "gemma3_text": {
        "plain": {"num_key_value_heads": 4, "head_dim": 12},
        "grouped-wide": {**GQA, **WIDE, "rms_norm_eps": 0.9},
        "full-first": {
            "num_key_value_heads": 2, "head_dim": 12,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": LOCAL,
            },
        },
        "sliding-dynamic": {
            "num_key_value_heads": 2, "head_dim": 12, **SHORT,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0},
            },
        },
    },
    "gemma3": {
        "plain": {"num_key_value_heads": 4, "head_dim": 12},
        "full-first": {**GQA, **WIDE, "layer_types": ["full_attention", "sliding_attention"]},
    },
    "phi": {
        "plain": {},
        "grouped": {**GQA, "hidden_size": 60, **rope("default", partial_rotary_factor=0.4)},
        "dynamic": SHORT | rope("dynamic", partial_rotary_factor=0.5, factor=2.0),
    },
    "phi3": {
        "plain": {},
        "grouped-partial": {**GQA, **rope("default", partial_rotary_factor=0.75)},
        "long": {
            "original_max_position_embeddings": 32, **rope("longrope", **factors(6)),
        },
        "short": {
            "original_max_position_embeddings": 40, **rope("longrope", **factors(6)),
        },
        "long-partial": {
            "original_max_position_embeddings": 16, "hidden_size": 64,
            **rope("longrope", **factors(6), partial_rotary_factor=0.75),
        },
    },
    "olmo2": {
        "plain": {},
        "grouped": {**GQA, "rms_norm_eps": 1e-3},
        "bias": {"attention_bias": True, **rope("llama3", 500000.0, **LLAMA3)},
    },
    "cohere": {
        "plain": {},
        "grouped": {**GQA, **rope("default", 8000000.0)},
        "linear": {"attention_bias": True, **rope("linear", factor=2.0)},
    },
}  # fmt: skip

BASES = {
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "distilbert": {"dim": 48, "n_heads": 4, "n_layers": 2, "hidden_dim": 8},
    "opt": {"ffn_dim": 8},
}
PLAIN = {
    "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def made_config(family: str, changes: dict[str, Any]) -> Any:
    base = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, **PLAIN,
    }  # fmt: skip
    if family in ("gpt2", "distilbert"):
        base = {key: base[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    values = {**base, **BASES.get(family, {}), **json.loads(json.dumps(changes))}
    if family == "gemma3":
        return AutoConfig.for_model(family, text_config=values, vision_config=VISION)
    return AutoConfig.for_model(family, **values)


NAMED = [(family, name) for family, cases in CASES.items() for name in cases]
ALL = [
    pytest.param(family, CASES[family][name], number, id=f"{family}-{name}")
    for number, (family, name) in enumerate(NAMED)
]


@pytest.mark.parametrize(("family", "changes", "number"), ALL)
def test_q_k_and_v_are_what_the_models_first_attention_is_given(
    tmp_path: Path, family: str, changes: dict[str, Any], number: int
) -> None:
    save_model(tmp_path, made_config(family, changes), number)
    assert_as_transformers(tmp_path)


def test_every_family_is_tested() -> None:
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize(("family", "changes", "number"), ALL)
def test_the_models_shape_is_known_before_it_is_read(
    tmp_path: Path, family: str, changes: dict[str, Any], number: int
) -> None:
    save_model(tmp_path, made_config(family, changes), number)
    model = read_model(tmp_path, context_length=T)
    layer = load_checkpoint(tmp_path, context_length=T, dtype=torch.float32)
    assert model.model_type == family
    for name in ("vocabulary_size", "d_model", "heads", "kv_heads", "head_dim", "norm", "eps"):
        assert getattr(model, name) == getattr(layer, name), name
    assert model.positions == layer.positions
    assert model.rotary_dims == (0 if layer.rotary_cos is None else 2 * layer.rotary_cos.shape[1])
    assert model.biases == (layer.q_bias is not None)
    assert (model.qk_norm == "none") == (layer.q_norm is None)
    assert model.attention_scale == pytest.approx(attention_scale(tmp_path))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_default_config_of_every_family_is_accepted(tmp_path: Path, family: str) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    read_model(tmp_path, context_length=T)
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model(family).to_dict()))
    read_model(tmp_path, context_length=T)
