"""config.json of a model's folder -> Model: the sizes and kinds of its first layer, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporters.errors import WeightsError
from jobs.families import FAMILIES, HARMLESS, SHAPING, Family, QkNorm
from jobs.modelfiles import CONFIG, own_file
from jobs.ropesettings import Rope, read_rope
from jobs.settings import Settings, read_json
from kernels.layer import Norm


@dataclass(frozen=True, kw_only=True)
class Model:
    """What config.json says of a model's first layer."""

    model_type: str
    family: Family
    vocabulary_size: int  # rows of the embedding
    embedding_width: int  # of those rows: d_model, unless they are projected
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    biases: bool  # of q, k and v
    norm: Norm
    norm_affine: bool  # whether it has weights
    eps: float
    qk_norm: QkNorm
    attention_scale: float  # what the attention function multiplies q k^T by
    positions: Literal["learned", "rope"]
    max_positions: int  # the windows it was made for
    position_offset: int  # row of the first token in the table of learned positions
    rope: Rope | None
    notes: tuple[str, ...]  # what a user should know before using it

    @property
    def q_width(self) -> int:
        """H*Dh."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Hk*Dh, of k and of v."""
        return self.kv_heads * self.head_dim

    @property
    def rotary_dims(self) -> int:
        """How many values of a head turn."""
        return 0 if self.rope is None else self.rope.dims

    @property
    def interleaved(self) -> bool:
        """Whether neighbours turn together, rather than the halves of a head."""
        return self.rope is not None and self.rope.interleaved


def read_model(folder: Path, *, context_length: int) -> Model:
    """Read config.json of a model's folder, and nothing else, for windows of context_length.

    Raises:
        WeightsError: if it is not there, damaged, of an unknown family, asks for something that is
            not understood, or has too few learned positions.
    """
    where = f"--weights {folder}: {CONFIG}"
    config = read_json(own_file(folder, CONFIG), where)
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str):
        raise WeightsError(f"{where} lacks model_type; give a model's folder as it was saved")
    family = FAMILIES.get(model_type)
    if family is None:
        raise WeightsError(
            f"{where} says model_type = {model_type[:60]!r}, which is none of "
            f"{', '.join(FAMILIES)}; a family is added by one entry in jobs/families.py and one "
            "test, as CONTRIBUTING.md tells"
        )
    if family.inside is not None:
        _check_options(config, model_type, family, {family.inside})
        config = config.object(family.inside)
    _check_options(config, model_type, family, family.understood())
    return _model(config, model_type, family, context_length)


def _model(config: Settings, model_type: str, family: Family, context_length: int) -> Model:
    missing = {key: value for key, value in family.defaults.items() if key not in config.values}
    config = Settings(config.where, {**config.values, **missing})
    keys = family.keys
    d_model, heads = config.count(keys.d_model), config.count(keys.heads)
    kv_heads, head_dim = heads, 0
    if keys.kv_heads is not None and config.has(keys.kv_heads):
        kv_heads = config.count(keys.kv_heads)
        if heads % kv_heads:
            raise config.error(keys.kv_heads, f"no divisor of {keys.heads} = {heads}")
    if keys.head_dim is not None and config.has(keys.head_dim):
        head_dim = config.count(keys.head_dim)
    elif d_model % heads:
        raise config.error(keys.heads, f"no divisor of {keys.d_model} = {d_model}")
    head_dim = head_dim or d_model // heads
    width = d_model
    if family.embedding_width is not None and config.has(family.embedding_width):
        width = config.count(family.embedding_width)
    offset = family.position_offset
    max_positions = config.count(keys.max_positions)
    if family.pad_key is not None:
        offset += config.index(family.pad_key)
        max_positions = max(0, max_positions - offset)
    rope = None
    if family.rope is not None:
        local = family.rope.local_theta is not None and _slides(config)
        rope = read_rope(
            config, family.rope, head_dim=head_dim, max_positions=max_positions, local=local
        )
    has_norm = family.norm != "none" and _says(config, family.norm_present)
    eps = family.eps
    return Model(
        model_type=model_type,
        family=family,
        vocabulary_size=config.count(keys.vocabulary),
        embedding_width=width,
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        biases=_says(config, family.biases),
        norm=family.norm if has_norm else "none",
        norm_affine=has_norm and _says(config, family.norm_affine),
        eps=config.number(eps, 0.0, 1.0) if isinstance(eps, str) else eps,
        qk_norm=family.qk_norm,
        attention_scale=_attention_scale(config, family, head_dim),
        positions="learned" if rope is None else "rope",
        max_positions=max_positions,
        position_offset=offset,
        rope=rope,
        notes=_notes(config, rope, max_positions, context_length),
    )


def _attention_scale(config: Settings, family: Family, head_dim: int) -> float:
    if family.q_scaled or not _says(config, family.scales):
        return 1.0
    root = head_dim if family.scale is None else config.number(family.scale, 1e-6, 1e6)
    return float(root**-0.5)


def _notes(
    config: Settings, rope: Rope | None, max_positions: int, context_length: int
) -> tuple[str, ...]:
    """A note on windows longer than the model was made for.

    Raises:
        WeightsError: if its positions end there.
    """
    if context_length <= max_positions:
        return ()
    if rope is None:
        raise WeightsError(
            f"{config.where} has positions for {max_positions} tokens, fewer than the context "
            f"length {context_length}; give --context-length {max(max_positions, 1)} or less"
        )
    return (f"the model was made for windows of {max_positions} tokens, not {context_length}",)


def _check_options(config: Settings, model_type: str, family: Family, understood: set[str]) -> None:
    """Raise WeightsError for a key that may shape q, k and v and is not known to do so or not."""
    for key in config.values:
        if not SHAPING.search(key.lower()) or key in HARMLESS or key in understood:
            continue
        value = config.values[key]
        harmless = key in family.allowed and value == family.allowed[key]
        if config.has(key) and value is not False and not harmless:
            raise config.error(
                key,
                f"not understood for {model_type}: q, k and v might not be what the model gives "
                "its attention; use a model without it",
            )


def _slides(config: Settings) -> bool:
    """Whether the first layer sees a window only; all but every sixth do, unless told."""
    if config.has("layer_types"):
        kinds = config.values["layer_types"]
        first = kinds[0] if isinstance(kinds, list) else None
        if first not in ("sliding_attention", "full_attention"):
            raise config.error("layer_types", "no list of sliding_attention and full_attention")
        return bool(first == "sliding_attention")
    pattern = "sliding_window_pattern"
    return not config.has(pattern) or config.count(pattern) > 1


def _says(config: Settings, value: bool | str) -> bool:
    """A fact of the family, or what the config says of it."""
    return config.flag(value) if isinstance(value, str) else value
