"""The families of models whose first layer is known: what their files call what it is made of.

Each says what transformers, version 5, computes up to the first attention function of a model of
that `model_type`. A family is added by one entry in FAMILIES and one in the table of
tests/jobs/test_families.py, which holds it against transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kernels.layer import Norm

Fused = Literal["none", "rows", "columns", "heads"]
QkNorm = Literal["none", "head", "all"]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What config.json calls the sizes; None where there is no such key."""

    vocabulary: str = "vocab_size"
    d_model: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    max_positions: str = "max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class RopeKeys:
    """How a family says by what its heads turn."""

    theta: str = "rope_theta"
    default_theta: float = 10000.0
    partial: str | None = None  # None: whole heads turn
    default_partial: float = 1.0
    twins: Mapping[str, str] = field(default_factory=dict)  # key that may repeat theta or partial
    interleaved: bool = False
    local_theta: str | None = None  # of sliding layers, which turn by angles of their own
    default_local_theta: float = 10000.0
    kinds: Mapping[str, str] | None = None  # its rope types and what they are; None: all known


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type. Names of tensors follow one of the prefixes; a `str` for a `bool` is the
    key of config.json that says so."""

    prefixes: tuple[str, ...]
    embedding: str
    attention: str  # what the names of the first attention's tensors begin with
    projections: tuple[str, ...]  # of q, k and v, or of all at once
    fused: Fused = "none"
    biases: bool | str
    q_scaled: bool = False  # q * Dh^-0.5 before the attention function, which then scales no more
    scale: str | None = None  # key of s where scores are scaled by s^-0.5 instead of Dh^-0.5
    scales: bool | str = True  # whether scores are scaled at all
    norm: Norm
    norm_name: str = ""
    norm_biased: bool = False
    norm_present: bool | str = True
    norm_affine: bool | str = True
    eps: float | str
    norm_offset: float = 0.0
    embedding_scaled: bool = False  # by sqrt(d)
    embedding_width: str | None = None  # where rows may be narrower, and are then projected
    embedding_projection: str = ""
    qk_norm: QkNorm = "none"
    position: str = ""  # the table of learned positions
    position_offset: int = 0  # its row for the first token
    pad_key: str | None = None  # of a token whose id is added to that row
    token_type: str = ""  # row 0 of which is added everywhere
    keys: Keys = Keys()
    rope: RopeKeys | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys that a file leaves out
    allowed: Mapping[str, Any] = field(default_factory=dict)  # options that change nothing so
    inside: str | None = None  # the object of config.json that describes the text model

    def understood(self) -> set[str]:
        """The keys of config.json that are read."""
        keys = self.keys
        names: list[object] = [keys.vocabulary, keys.d_model, keys.heads, keys.kv_heads]
        names += [keys.head_dim, keys.max_positions, self.pad_key, self.embedding_width]
        names += [self.biases, self.norm_present, self.norm_affine, self.eps]
        names += [self.scale, self.scales]
        if self.rope is not None:
            names += [self.rope.theta, self.rope.partial, self.rope.local_theta, *self.rope.twins]
            names += ["rope_parameters", "rope_scaling", "original_max_position_embeddings"]
            names += ["partial_rotary_factor"]
        return {name for name in names if isinstance(name, str)}


SHAPING = re.compile(
    "attn|attention|head|posit|rope|rotar|norm|emb|qk|bias|clip|alibi|scal|multipl|quant|compress"
)
"""A key of config.json that speaks of this may shape q, k and v: it is understood or refused."""

HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_remove_final_layer_norm", "add_cross_attention", "attention_dropout",
    "attention_probs_dropout_prob", "attn_implementation", "attn_logit_softcapping", "attn_pdrop",
    "embd_pdrop", "logit_scale", "mlp_bias", "output_attentions", "pooler_num_attention_heads",
    "pooler_size_per_head",
    "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx",
    "sinusoidal_pos_embds", "tie_word_embeddings", "use_bidirectional_attention",
})  # fmt: skip
"""Keys that SHAPING finds, but that act in training, within the attention function or after it."""

UNUSED = re.compile(
    r"(o_proj|out_proj|dense|out_lin|c_proj)\.(weight|bias)|(masked_)?bias|rotary_emb\.inv_freq"
)
"""Tensors of the first attention that shape no q, k and v: its output, masks, and a formula."""

OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""How names of tensors ended in checkpoints converted from TensorFlow."""

_ABSOLUTE = {"position_embedding_type": "absolute"}
_WHOLE_HEADS = Keys(kv_heads=None, head_dim=None)

_GPT2 = Family(
    prefixes=("transformer.", ""),
    embedding="wte.weight",
    position="wpe.weight",
    attention="h.0.attn.",
    projections=("c_attn",),
    fused="columns",
    biases=True,
    norm="layernorm",
    norm_name="h.0.ln_1",
    norm_biased=True,
    eps="layer_norm_epsilon",
    keys=Keys(
        d_model="n_embd", heads="n_head", kv_heads=None, head_dim=None, max_positions="n_positions"
    ),
    scales="scale_attn_weights",
    defaults={"scale_attn_weights": True},
    allowed=_ABSOLUTE,
)

_BERT = Family(
    prefixes=("bert.", ""),
    embedding="embeddings.word_embeddings.weight",
    position="embeddings.position_embeddings.weight",
    token_type="embeddings.token_type_embeddings.weight",
    attention="encoder.layer.0.attention.self.",
    projections=("query", "key", "value"),
    biases=True,
    norm="layernorm",
    norm_name="embeddings.LayerNorm",
    norm_biased=True,
    eps="layer_norm_eps",
    keys=_WHOLE_HEADS,
    allowed=_ABSOLUTE,
)

_DISTILBERT = replace(
    _BERT,
    prefixes=("distilbert.", ""),
    token_type="",
    attention="transformer.layer.0.attention.",
    projections=("q_lin", "k_lin", "v_lin"),
    eps=1e-12,
    keys=Keys(d_model="dim", heads="n_heads", kv_heads=None, head_dim=None),
)

_OPT = Family(
    prefixes=("model.decoder.", "decoder.", ""),
    embedding="embed_tokens.weight",
    embedding_width="word_embed_proj_dim",
    embedding_projection="project_in.weight",
    position="embed_positions.weight",
    position_offset=2,
    attention="layers.0.self_attn.",
    projections=("q_proj", "k_proj", "v_proj"),
    biases="enable_bias",
    q_scaled=True,
    norm="layernorm",
    norm_name="layers.0.self_attn_layer_norm",
    norm_biased=True,
    norm_present="do_layer_norm_before",
    norm_affine="layer_norm_elementwise_affine",
    eps=1e-5,
    keys=_WHOLE_HEADS,
    defaults={
        "do_layer_norm_before": True, "enable_bias": True, "layer_norm_elementwise_affine": True,
    },
    allowed={**_ABSOLUTE, "learned_embeddings": True},
)  # fmt: skip

_NEOX = Family(
    prefixes=("gpt_neox.", ""),
    embedding="embed_in.weight",
    attention="layers.0.attention.",
    projections=("query_key_value",),
    fused="heads",
    biases="attention_bias",
    norm="layernorm",
    norm_name="layers.0.input_layernorm",
    norm_biased=True,
    eps="layer_norm_eps",
    keys=_WHOLE_HEADS,
    rope=RopeKeys(
        theta="rotary_emb_base",
        partial="rotary_pct",
        default_partial=0.25,
        twins={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    ),
    defaults={"attention_bias": True},
)

_LLAMA = Family(
    prefixes=("model.", ""),
    embedding="embed_tokens.weight",
    attention="layers.0.self_attn.",
    projections=("q_proj", "k_proj", "v_proj"),
    biases="attention_bias",
    norm="rmsnorm",
    norm_name="layers.0.input_layernorm",
    eps="rms_norm_eps",
    rope=RopeKeys(),
    defaults={"attention_bias": False},
)

_GEMMA = replace(
    _LLAMA,
    embedding_scaled=True,
    norm_offset=1.0,
    defaults={"attention_bias": False, "num_key_value_heads": 16, "head_dim": 256},
)

_GEMMA3 = replace(
    _GEMMA,
    qk_norm="head",
    scale="query_pre_attn_scalar",
    rope=RopeKeys(default_theta=1_000_000.0, local_theta="rope_local_base_freq"),
    defaults={
        "attention_bias": False, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    },
)  # fmt: skip

_PHI3 = replace(
    _LLAMA,
    projections=("qkv_proj",),
    fused="rows",
    biases=False,
    rope=RopeKeys(
        partial="partial_rotary_factor",
        kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    ),
    defaults={"original_max_position_embeddings": 4096},
    allowed={"full_attn_mod": 1},
)

_PHI = replace(
    _LLAMA,
    biases=True,
    norm="layernorm",
    norm_biased=True,
    eps="layer_norm_eps",
    rope=RopeKeys(partial="partial_rotary_factor", default_partial=0.5),
)

_COHERE = replace(
    _LLAMA,
    norm="layernorm",
    eps="layer_norm_eps",
    rope=RopeKeys(default_theta=500_000.0, interleaved=True),
)

FAMILIES = {
    "bert": _BERT,
    "cohere": _COHERE,
    "distilbert": _DISTILBERT,
    "gemma": _GEMMA,
    "gemma2": replace(
        _GEMMA,
        scale="query_pre_attn_scalar",
        defaults={**_GEMMA.defaults, "num_key_value_heads": 4, "query_pre_attn_scalar": 256},
    ),
    "gemma3": replace(
        _GEMMA3,
        prefixes=("model.language_model.", "language_model.model.", "model.", ""),
        inside="text_config",
    ),
    "gemma3_text": _GEMMA3,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, biases=False, defaults={"num_key_value_heads": 8}),
    "olmo2": replace(_LLAMA, norm="none", qk_norm="all"),
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": replace(
        _LLAMA,
        biases=True,
        allowed={"attention_bias": True},
        defaults={"num_key_value_heads": 32},
    ),
    "qwen3": replace(
        _LLAMA,
        qk_norm="head",
        defaults={"attention_bias": False, "num_key_value_heads": 32, "head_dim": 128},
    ),
    "roberta": replace(_BERT, prefixes=("roberta.", ""), position_offset=1, pad_key="pad_token_id"),
}
"""model_type of config.json -> what its first layer is."""
