"""The rotary positions that a model's config.json asks for.

They stand in `rope_parameters`, as transformers 5 writes them, or in `rope_theta`, `rope_scaling`
and the like, as it was before. Where both are there, they have to agree; only of
original_max_position_embeddings the one outside counts, as in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporters.errors import WeightsError
from jobs.families import RopeKeys
from jobs.settings import Settings
from kernels import frequencies
from kernels.frequencies import Frequencies

LEAST_THETA = 1.001
LARGEST_THETA = 1e12
LARGEST_FACTOR = 1e6
LENGTH = "original_max_position_embeddings"
EVERYWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
OPTIONS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", LENGTH},
    "yarn": {
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate", LENGTH,
    },
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor", LENGTH},
}  # fmt: skip
"""Known rope types -> what each is told beside EVERYWHERE."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How the first layer's heads turn."""

    kind: str
    theta: float
    dims: int  # R: the values of a head that turn
    interleaved: bool
    options: Mapping[str, Any]  # of the function of kernels.frequencies, but the window


def read_rope(
    config: Settings, keys: RopeKeys, *, head_dim: int, max_positions: int, local: bool
) -> Rope:
    """The rotary positions of the first layer.

    Args:
        max_positions: the windows that the model was made for.
        local: whether it is a sliding layer of a model whose sliding layers turn otherwise.

    Raises:
        WeightsError: if they are of an unknown type, hold an unknown key, or contradict each other.
    """
    nested = keys.local_theta is not None
    scaling = _scaling(config, nested, local)
    theta_key, default = keys.theta, keys.default_theta
    if local and keys.local_theta is not None:
        theta_key, default = keys.local_theta, keys.default_local_theta
    theta = _agreed(config, theta_key, scaling, "rope_theta", default, LEAST_THETA, LARGEST_THETA)
    least = 1 / head_dim
    partial_key = keys.partial or "partial_rotary_factor"
    partial = _agreed(
        config, partial_key, scaling, "partial_rotary_factor", keys.default_partial, least, 1.0
    )
    for twin, key in keys.twins.items():
        meant = theta if key == keys.theta else partial
        if config.has(twin) and config.values[twin] != meant:
            raise config.error(twin, f"not the {key} = {meant:g} by which such a model turns")
    dims = int(head_dim * partial)
    if partial != 1.0 and keys.partial is None:
        where = scaling if scaling.has("partial_rotary_factor") else config
        raise where.error("partial_rotary_factor", "not 1, but such a model turns whole heads")
    if dims % 2 or dims < 2:
        raise WeightsError(
            f"{config.where}: {dims} of a head's {head_dim} values turn, which are not pairs; "
            "such a model is not supported"
        )
    kind = _kind(scaling, keys)
    for key in scaling.values:
        if key not in EVERYWHERE | OPTIONS[kind] and scaling.has(key):
            raise scaling.error(key, f"not understood for the rope type {kind}")
    length = config if config.has(LENGTH) and not nested else scaling
    trained = length.count(LENGTH) if length.has(LENGTH) else max_positions
    return Rope(
        kind=kind,
        theta=theta,
        dims=dims,
        interleaved=keys.interleaved,
        options=_options(scaling, kind, dims, trained, max_positions),
    )


def rope_frequencies(rope: Rope, context_length: int) -> Frequencies:
    """The frequencies in windows of context_length tokens."""
    if rope.kind == "default":
        return Frequencies(frequencies.inverse_frequencies(rope.theta, rope.dims))
    windows = {"context_length": context_length} if rope.kind in ("dynamic", "longrope") else {}
    made: Frequencies = getattr(frequencies, rope.kind)(
        rope.theta, rope.dims, **rope.options, **windows
    )
    return made


def _scaling(config: Settings, nested: bool, local: bool) -> Settings:
    """The object of rope settings of the first layer, which is empty where there is none."""
    given = [name for name in ("rope_parameters", "rope_scaling") if config.has(name)]
    if len(given) == 2 and config.values[given[0]] != config.values[given[1]]:
        raise config.error("rope_scaling", "not what rope_parameters says; leave one out")
    if not given:
        return Settings(config.where, {})
    found = config.object(given[0])
    if not nested:
        return found
    if given[0] == "rope_scaling":  # which is of the layers that see everything
        return Settings(found.where, {}) if local else found
    layers = ("sliding_attention", "full_attention")
    for key in found.values:
        if key not in layers:
            raise found.error(key, f"not understood; there should be {' and '.join(layers)}")
    name = layers[0] if local else layers[1]
    return found.object(name) if found.has(name) else Settings(found.where, {})


def _agreed(
    config: Settings,
    key: str,
    scaling: Settings,
    inner: str,
    default: float,
    least: float,
    most: float,
) -> float:
    """A number that stands in the rope settings, beside them, in both alike, or nowhere."""
    beside = config.number(key, least, most) if config.has(key) else None
    within = scaling.number(inner, least, most) if scaling.has(inner) else None
    if beside is not None and within is not None and beside != within:
        raise config.error(key, f"not the {inner} = {within:g} of the rope settings")
    if within is not None:
        return within
    return default if beside is None else beside


def _kind(scaling: Settings, keys: RopeKeys) -> str:
    known = keys.kinds or {kind: kind for kind in OPTIONS}
    kinds = []
    for key in ("rope_type", "type"):
        if scaling.has(key):
            kind = known.get(str(scaling.values[key]))
            if kind is None:
                raise scaling.error(key, f"not a known rope type, which are {', '.join(known)}")
            kinds.append(kind)
    if len(set(kinds)) > 1:
        raise scaling.error("type", "not what rope_type says; leave one out")
    return kinds[0] if kinds else "default"


def _options(
    scaling: Settings, kind: str, dims: int, trained: int, max_positions: int
) -> dict[str, Any]:
    """What the function of kernels.frequencies for a rope type is told."""

    def factor(key: str, default: float | None = None) -> float | None:
        return scaling.number(key, 1e-6, LARGEST_FACTOR) if scaling.has(key) else default

    def needed(key: str) -> float:
        return scaling.number(key, 1e-6, LARGEST_FACTOR)

    if kind == "default":
        return {}
    if kind == "linear":
        return {"factor": needed("factor")}
    if kind == "dynamic":
        if dims == 2:
            raise scaling.error("rope_type", "dynamic, which needs more than one pair that turns")
        return {"factor": needed("factor"), "trained_length": max_positions}
    if kind == "llama3":
        low, high = needed("low_freq_factor"), needed("high_freq_factor")
        if low >= high:
            raise scaling.error("high_freq_factor", f"not above low_freq_factor = {low:g}")
        return {
            "factor": needed("factor"),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "trained_length": trained,
        }
    if kind == "yarn":
        return {
            "factor": needed("factor"),
            "trained_length": trained,
            "attention_factor": factor("attention_factor"),
            "beta_fast": factor("beta_fast", 32),
            "beta_slow": factor("beta_slow", 1),
            "mscale": factor("mscale"),
            "mscale_all_dim": factor("mscale_all_dim"),
            "truncate": scaling.flag("truncate") if scaling.has("truncate") else True,
        }
    if trained < 2:
        raise WeightsError(f"{scaling.where}: {LENGTH} = {trained} is less than 2")
    return {
        "short_factor": scaling.numbers("short_factor", dims // 2, 1e-6, LARGEST_FACTOR),
        "long_factor": scaling.numbers("long_factor", dims // 2, 1e-6, LARGEST_FACTOR),
        "attention_factor": factor("attention_factor"),
        "factor": factor("factor", max_positions / trained),
        "trained_length": trained,
    }
