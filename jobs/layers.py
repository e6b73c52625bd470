"""Which first layer a job uses: from the weights file, or made from the seed."""

from dataclasses import dataclass, replace
from typing import Any

from exporters.errors import WeightsError
from exporters.layerfile import load_layer
from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.owned import owned
from jobs.tokenizer import Tokenizer
from kernels.layer import DTYPES, FirstLayer, Norm, seeded_layer
from kernels.tables import table_bytes


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The widths of a first layer, known before its parameters are."""

    vocabulary_size: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: Norm
    positions: int  # T, or 0 where none are added
    angles: int  # values of cos and sin of rotary positions, 2 * T * R/2, or 0
    normed_heads: bool  # whether q and k are normalised after the projection
    bytes: int  # of all parameters, in the job's dtype

    @property
    def total_width(self) -> int:
        """F: q, k and v side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def table_bytes(self, distinct: int) -> int:
        """Bytes of the tables for so many distinct tokens."""
        return table_bytes(
            tokens=distinct,
            positions=self.positions,
            d_model=self.d_model,
            total_width=self.total_width,
            norm=self.norm,
            angles=self.angles,
        )


def load_weights(config: JobConfig) -> FirstLayer | None:
    """The layer of --weights in the job's dtype; None where it will be made from the seed.

    It is in memory of our own: whoever writes to the file from then on changes nothing.

    Raises:
        WeightsError: if the file cannot be used.
        LayerError: if a value does not fit the dtype.
    """
    if config.weights is None:
        return None
    layer = load_layer(
        config.weights,
        context_length=config.context_length,
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=config.kv_heads,
        positions=config.positions,
    )
    dtype = DTYPES[config.dtype]
    return _unturned(config, owned(layer) if layer.dtype == dtype else layer.to(dtype))


def _unturned(config: JobConfig, layer: FirstLayer) -> FirstLayer:
    """The layer without its rotary positions where --pre-rope asks so.

    Raises:
        ConfigError: if it has none.
    """
    if not config.pre_rope:
        return layer
    if layer.rotary is None:
        raise ConfigError(
            f"--pre-rope has no effect: the layer's positions are {layer.positions}; leave it out"
        )
    return replace(layer, rotary_cos=None, rotary_sin=None, positions="none")


def layer_shape(
    config: JobConfig, loaded: FirstLayer | None, tokenizer: Tokenizer, largest_id: int | None
) -> LayerShape | None:
    """The layer's shape; None where none is needed, or where it hangs on an unknown largest id."""
    if not config.needs_layer:
        return None
    if loaded is not None:
        return LayerShape(
            vocabulary_size=loaded.vocabulary_size,
            d_model=loaded.d_model,
            heads=loaded.heads,
            kv_heads=loaded.kv_heads,
            head_dim=loaded.head_dim,
            norm=loaded.norm,
            positions=0 if loaded.position is None else len(loaded.position),
            angles=0 if loaded.rotary is None else 2 * loaded.rotary.cos.numel(),
            normed_heads=loaded.q_norm is not None,
            bytes=sum(tensor.nbytes for tensor in loaded.tensors().values()),
        )
    if config.vocab_size == "corpus" and largest_id is None:
        return None
    vocabulary_size = _vocabulary_size(config, tokenizer, largest_id or 0)
    d_model, heads, kv_heads = config.seeded_widths
    head_dim = d_model // heads
    width = (heads + 2 * kv_heads) * head_dim
    added = config.seeded_positions in ("sinusoidal", "learned")
    positions = config.context_length if added else 0
    turns = config.seeded_positions == "rope" and not config.pre_rope
    angles = config.context_length * head_dim if turns else 0
    parameters = (vocabulary_size + positions + width) * d_model + width
    return LayerShape(
        vocabulary_size=vocabulary_size,
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm="none",
        positions=positions,
        angles=angles,
        normed_heads=False,
        bytes=parameters * DTYPES[config.dtype].itemsize + 4 * angles,
    )


def make_layer(config: JobConfig, tokenizer: Tokenizer, largest_id: int) -> FirstLayer:
    """The layer from the seed, in the job's dtype."""
    d_model, heads, kv_heads = config.seeded_widths
    layer = seeded_layer(
        vocabulary_size=_vocabulary_size(config, tokenizer, largest_id),
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        context_length=config.context_length,
        positions=config.seeded_positions,
        seed=config.seed,
    )
    return _unturned(config, layer.to(DTYPES[config.dtype]))


def check_ids(config: JobConfig, shape: LayerShape, largest_id: int) -> None:
    """Raise if a token of the corpus has no row in the embedding.

    Raises:
        WeightsError, ConfigError: for a layer from a file and one from the seed.
    """
    if largest_id < shape.vocabulary_size:
        return
    rows = (
        f"the embedding has {shape.vocabulary_size} rows, but the corpus holds token {largest_id}"
    )
    if config.weights is not None:
        raise WeightsError(f"--weights {config.weights}: {rows}; use the tokenizer of that model")
    raise ConfigError(f"--vocab-size {config.vocab_size}: {rows}; give {largest_id + 1} or more")


def describe_layer(config: JobConfig, layer: FirstLayer, weights_sha256: str) -> dict[str, Any]:
    """The layer's section of the manifest."""
    return {
        "source": "seed" if config.weights is None else "weights",
        "file": None if config.weights is None else config.weights.name,
        "family": None,
        "weights_sha256": weights_sha256,
        "vocabulary_size": layer.vocabulary_size,
        "d_model": layer.d_model,
        "heads": layer.heads,
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "norm": layer.norm,
        "eps": layer.eps,
        "norm_offset": layer.norm_offset,
        "qk_norm": layer.qk_norm,
        "positions": layer.positions,
        "rotary_dims": 0 if layer.rotary is None else 2 * layer.rotary.cos.shape[1],
        "rotary_interleaved": layer.rotary_interleaved,
        "embedding_scale": layer.embedding_scale,
        "dtype": config.dtype,
    }


def _vocabulary_size(config: JobConfig, tokenizer: Tokenizer, largest_id: int) -> int:
    if config.vocab_size == "corpus":
        return largest_id + 1
    if config.vocab_size in (None, "encoding"):
        return tokenizer.vocabulary_size
    return int(config.vocab_size or 0)
