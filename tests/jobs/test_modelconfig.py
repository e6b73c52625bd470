"""config.json as models' makers wrote it, with smaller sizes, and as nobody should."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from exporters.errors import WeightsError
from jobs.families import FAMILIES
from jobs.modelconfig import read_model
from tests.recorded import T, assert_as_transformers, quiet, save_model

SIZES = {
    "hidden_size": 48, "intermediate_size": 8, "max_position_embeddings": 64,
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 97,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0", "use_cache": True, "initializer_range": 0.02,
}  # fmt: skip
LLAMA = {
    **SIZES, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "model_type": "llama",
    "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False,
}  # fmt: skip
BERT = {
    **SIZES, "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12, "model_type": "bert", "pad_token_id": 0,
    "position_embedding_type": "absolute", "type_vocab_size": 2,
}  # fmt: skip
PHI3 = {
    **SIZES, "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "silu", "model_type": "phi3",
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "num_key_value_heads": 4,
    "original_max_position_embeddings": 64, "pad_token_id": 0, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
    "tie_word_embeddings": False,
}  # fmt: skip
LONG = {
    "long_factor": [1.1, 1.3, 1.8, 2.9, 5.5, 9.0], "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.3],
}  # fmt: skip
GEMMA = {
    **SIZES, "attention_bias": False, "attention_dropout": 0.0, "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1, "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
}  # fmt: skip
QWEN = {
    **LLAMA, "attention_dropout": 0.0, "max_window_layers": 28, "rope_theta": 1000000.0,
    "sliding_window": 131072, "use_sliding_window": False,
}  # fmt: skip

HUB: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 1, "embd_pdrop": 0.1, "eos_token_id": 1,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 64,
        "n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 97,
    },
    "bert-base-uncased": BERT,
    "roberta-base": {
        **BERT, "architectures": ["RobertaForMaskedLM"], "layer_norm_eps": 1e-05,
        "max_position_embeddings": 66, "model_type": "roberta", "pad_token_id": 1,
        "type_vocab_size": 1, "bos_token_id": 0,
    },
    "distilbert-base-uncased": {
        "activation": "gelu", "architectures": ["DistilBertForMaskedLM"],
        "attention_dropout": 0.1, "dim": 48, "dropout": 0.1, "hidden_dim": 8,
        "initializer_range": 0.02, "max_position_embeddings": 64, "model_type": "distilbert",
        "n_heads": 4, "n_layers": 2, "pad_token_id": 0, "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True,
        "vocab_size": 97,
    },
    "pythia-70m": {
        **SIZES, "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu",
        "hidden_size": 64, "layer_norm_eps": 1e-05, "model_type": "gpt_neox", "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "tie_word_embeddings": False, "use_parallel_residual": True,
    },
    "pythia-saved-again": {
        **SIZES, "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-05, "model_type": "gpt_neox", "partial_rotary_factor": 0.5,
        "rope_scaling": {"factor": 2.0, "type": "linear"}, "rope_theta": 500,
        "rotary_emb_base": 500, "rotary_pct": 0.5, "tie_word_embeddings": False,
    },
    "opt-125m": {
        **SIZES, "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0, "do_layer_norm_before": True, "dropout": 0.1, "ffn_dim": 8,
        "init_std": 0.02, "layerdrop": 0.0, "model_type": "opt", "pad_token_id": 1,
        "prefix": "</s>", "word_embed_proj_dim": 48,
    },
    "llama-1": {
        key: value for key, value in LLAMA.items()
        if key not in ("num_key_value_heads", "pretraining_tp", "rope_scaling")
    },
    "llama-2": LLAMA,
    "llama-3": {
        **LLAMA, "attention_bias": False, "attention_dropout": 0.0, "rope_theta": 500000.0,
    },
    "llama-3.1": {
        **LLAMA, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16, "rope_type": "llama3",
        },
    },
    "llama-2-dynamic": {
        **LLAMA, "max_position_embeddings": 32, "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    },
    "mistral-7b": {
        **LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "rope_theta": 10000.0, "sliding_window": 4096,
    },
    "qwen2": {**QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen2.5-long": {
        **QWEN, "model_type": "qwen2",
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"},
    },
    "qwen3": {
        **QWEN, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 16,
        "model_type": "qwen3", "sliding_window": None,
    },
    "gemma-2b": {
        **GEMMA, "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu",
        "hidden_activation": None, "model_type": "gemma", "rope_scaling": None,
    },
    "gemma-2-2b": {
        **GEMMA, "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh", "model_type": "gemma2", "num_key_value_heads": 2,
        "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    "gemma-3-1b": {
        **GEMMA, "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
        "cache_implementation": "hybrid", "final_logit_softcapping": None,
        "model_type": "gemma3_text", "query_pre_attn_scalar": 256, "rope_local_base_freq": 100,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6,
    },
    "gemma-3-full": {
        **GEMMA, "model_type": "gemma3_text", "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 1,
    },
    "gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 3,
        "eoi_token_index": 4, "eos_token_id": [1, 2], "image_token_index": 5,
        "initializer_range": 0.02, "mm_tokens_per_image": 4, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 48, "intermediate_size": 8, "model_type": "gemma3_text",
            "num_hidden_layers": 2, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024, "vocab_size": 97,
        },
        "vision_config": {
            "hidden_size": 8, "image_size": 28, "intermediate_size": 8,
            "model_type": "siglip_vision_model", "num_attention_heads": 2, "num_hidden_layers": 1,
            "patch_size": 14, "vision_use_head": False,
        },
    },
    "phi-2": {
        **SIZES, "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0, "embd_pdrop": 0.0,
        "hidden_act": "gelu_new", "hidden_size": 80, "layer_norm_eps": 1e-05, "model_type": "phi",
        "num_key_value_heads": 4, "partial_rotary_factor": 0.4, "qk_layernorm": False,
        "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "phi-3-mini-4k": PHI3,
    "phi-3-mini-128k": {
        **PHI3, "original_max_position_embeddings": 16, "sliding_window": None,
        "rope_scaling": {**LONG, "type": "longrope"},
    },
    "phi-3-mini-128k-yarn": {
        **PHI3, "original_max_position_embeddings": 16, "rope_scaling": {**LONG, "type": "yarn"},
    },
    "phi-3-mini-128k-su": {
        **PHI3, "original_max_position_embeddings": 16,
        "rope_scaling": {**LONG, "type": "su", "original_max_position_embeddings": 16},
    },
    "olmo-2": {
        **LLAMA, "architectures": ["Olmo2ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "model_type": "olmo2", "pad_token_id": 0, "rms_norm_eps": 1e-06,
        "rope_theta": 500000,
    },
    "command-r": {
        **{key: value for key, value in LLAMA.items() if key != "rms_norm_eps"},
        "architectures": ["CohereForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "layer_norm_eps": 1e-05, "logit_scale": 0.0625,
        "model_max_length": 131072, "model_type": "cohere", "pad_token_id": 0,
        "rope_theta": 8000000.0, "use_qk_norm": False,
    },
}  # fmt: skip


def without(name: str, *keys: str) -> dict[str, Any]:
    """A config of HUB that leaves keys to their defaults."""
    assert all(key in HUB[name] for key in keys)
    return {key: value for key, value in HUB[name].items() if key not in keys}


HUB |= {
    "bert-with-pooler": {
        **BERT,
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
    },
    "phi-3-with-modulus": {**PHI3, "full_attn_mod": 1},
    "galactica": {**HUB["opt-125m"], "learned_embeddings": True},
    "command-r-by-default": without("command-r", "rope_theta", "use_qk_norm", "attention_bias"),
    "gemma-3-by-default": without("gemma-3-1b", "rope_theta", "rope_local_base_freq"),
    "gemma-3-full-by-default": without("gemma-3-full", "rope_theta", "rope_local_base_freq"),
    "llama-by-default": without("llama-3", "rope_theta", "num_key_value_heads", "attention_bias"),
    "opt-by-default": without("opt-125m", "do_layer_norm_before", "word_embed_proj_dim"),
    "phi-by-default": {
        **without("phi-2", "partial_rotary_factor", "rope_theta"),
        "hidden_size": 64,
    },
    "pythia-by-default": without("pythia-70m", "rotary_pct", "rotary_emb_base"),
    "qwen3-by-default": {**without("qwen3", "head_dim"), "num_attention_heads": 2},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", sorted(HUB))
def test_configs_as_the_hub_has_them_mean_what_transformers_takes_them_for(
    tmp_path: Path, name: str
) -> None:
    config = AutoConfig.from_pretrained(write(tmp_path, HUB[name]))
    save_model(tmp_path, config, len(name))
    write(tmp_path, HUB[name])
    assert_as_transformers(tmp_path)


def refusal(folder: Path, config: object, context_length: int = T) -> str:
    with pytest.raises(WeightsError) as error:
        read_model(write(folder, config), context_length=context_length)
    text = str(error.value)
    assert text.startswith(f"--weights {folder}: config.json")
    assert "\n" not in text
    return text


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("llama-2", {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
    ("llama-2", {"use_qk_norm": True}, "use_qk_norm = True"),
    ("llama-2", {"alibi": True}, "alibi = True"),
    ("llama-2", {"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0"),
    ("llama-2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama-2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("llama-2", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}}, "type = 'mrope'"),
    ("llama-2", {"rope_scaling": {"rope_type": "linear", "factor": 2, "spread": 3}}, "spread = 3"),
    ("llama-2", {"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
    ("llama-2", {"rope_scaling": {"rope_type": 3}}, "rope_type = 3"),
    ("llama-2", {"rope_scaling": {"rope_type": "linear", "type": "dynamic"}}, "type = 'dynamic'"),
    ("llama-2", {"rope_scaling": 7}, "rope_scaling = 7"),
    ("llama-2", {"rope_parameters": {"full_attention": {}, "a": {"b": 1}}}, "a = {'b': 1}"),
    ("llama-3", {"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta = 500000.0"),
    ("llama-3.1", {"rope_parameters": {"rope_type": "default"}}, "rope_scaling"),
    ("gpt2", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert-base-uncased", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("gpt2", {"rope_theta": 10000.0}, "rope_theta = 10000.0"),
    ("mistral-7b", {"attention_bias": True}, "attention_bias = True"),
    ("pythia-70m", {"rope_theta": 500.0}, "rope_theta = 500.0"),
    ("pythia-70m", {"rotary_pct": 0.1}, "turn, which are not pairs"),
    ("phi-2", {"qk_layernorm": True}, "qk_layernorm = True"),
    ("phi-3-mini-4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type = 'linear'"),
    ("phi-3-mini-128k", {"rope_scaling": {"type": "su", "short_factor": [1.0]}}, "6 numbers"),
    ("command-r", {"use_qk_norm": True}, "use_qk_norm = True"),
    ("gemma-3-1b", {"layer_types": ["chunked_attention"]}, "layer_types"),
    ("gemma-3-1b", {"rope_parameters": {"rope_theta": 3.0}, "rope_scaling": None}, "rope_theta"),
    ("gemma-3-4b", {"text_config": {"hidden_size": 48, "alibi": True}}, "alibi = True"),
    ("gemma-3-4b", {"text_config": None}, "lacks text_config"),
    ("gemma-3-4b", {"attention_clip": 3}, "attention_clip = 3"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), OTHERS)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], words: str
) -> None:
    read_model(write(tmp_path, HUB[name]), context_length=T)
    assert words in refusal(tmp_path, {**HUB[name], **change})


@pytest.mark.parametrize(
    "change",
    [
        {"clip_qkv": None, "alibi": False, "pruned_heads": {}},
        {"partial_rotary_factor": 1.0},
        {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 10000.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2, "spread": None}},
    ],
)
def test_options_that_are_off_are_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    read_model(write(tmp_path, {**LLAMA, **change}), context_length=T)


@pytest.mark.parametrize("value", [None, 0, -1, 1e30, 10**30, True, "48", 48.0, [48], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"]
)
def test_sizes_that_are_none_are_refused(tmp_path: Path, key: str, value: object) -> None:
    assert key in refusal(tmp_path, {**LLAMA, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 3), ("num_attention_heads", 5), ("head_dim", 0), ("head_dim", 7),
        ("rms_norm_eps", -1e-5), ("rms_norm_eps", float("nan")), ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 1e30), ("rope_theta", 0), ("rope_theta", 1e30), ("rope_theta", 10**400),
        ("rope_theta", True), ("rope_theta", float("inf")), ("attention_bias", 1),
        ("attention_bias", "yes"), ("original_max_position_embeddings", -4),
    ],
)  # fmt: skip
def test_other_absurd_values_are_refused(tmp_path: Path, key: str, value: object) -> None:
    assert key in refusal(tmp_path, {**LLAMA, key: value}) or "7 of a head's 7" in refusal(
        tmp_path, {**LLAMA, key: value}
    )


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "rms_norm_eps", "model_type"])
def test_a_key_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != key}
    assert f"lacks {key}" in refusal(tmp_path, config)


def test_an_unknown_family_is_told_how_it_is_added(tmp_path: Path) -> None:
    text = refusal(tmp_path, {**LLAMA, "model_type": "rwkv"})
    assert "'rwkv'" in text
    assert "jobs/families.py" in text
    assert all(family in text for family in FAMILIES)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 200_000, b'{"a": 1' + b" " * 10_000_000 + b"}"],
)
def test_a_damaged_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json (is|has) "):
        read_model(tmp_path, context_length=T)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json is not there"):
        read_model(tmp_path, context_length=T)


def test_windows_beyond_those_of_training(tmp_path: Path) -> None:
    assert read_model(write(tmp_path, LLAMA), context_length=64).notes == ()
    (note,) = read_model(tmp_path, context_length=65).notes
    assert "64 tokens, not 65" in note
    for name in ("gpt2", "bert-base-uncased", "roberta-base", "opt-125m"):
        read_model(write(tmp_path, HUB[name]), context_length=64)
        assert "fewer than the context length 65" in refusal(tmp_path, HUB[name], 65)
