"""The widths of a first layer, known before its parameters are."""

from dataclasses import dataclass

from jobs.config import JobConfig
from jobs.modelconfig import Model
from jobs.tokenizer import Tokenizer
from kernels.layer import DTYPES, FirstLayer, Norm
from kernels.tables import table_bytes


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Everything about a layer that sizes and the choice of a method hang on."""

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


def layer_shape(
    config: JobConfig,
    source: FirstLayer | Model | None,
    tokenizer: Tokenizer,
    largest_id: int | None,
) -> LayerShape | None:
    """The layer's shape; None where none is needed, or where it hangs on an unknown largest id.

    Args:
        source: the layer of --weights, or what its config.json says; None for one from the seed.
    """
    if not config.needs_layer:
        return None
    if isinstance(source, Model):
        return shape_of_model(source, config)
    if source is not None:
        return shape_of_layer(source)
    if config.vocab_size == "corpus" and largest_id is None:
        return None
    return _shape_from_seed(config, seeded_vocabulary(config, tokenizer, largest_id or 0))


def shape_of_layer(layer: FirstLayer) -> LayerShape:
    """The shape of a layer that is there."""
    return LayerShape(
        vocabulary_size=layer.vocabulary_size,
        d_model=layer.d_model,
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        norm=layer.norm,
        positions=0 if layer.position is None else len(layer.position),
        angles=0 if layer.rotary is None else 2 * layer.rotary.cos.numel(),
        normed_heads=layer.q_norm is not None,
        bytes=sum(tensor.nbytes for tensor in layer.tensors().values()),
    )


def shape_of_model(model: Model, config: JobConfig) -> LayerShape:
    """The shape of the first layer that a config.json describes, for the windows of a job."""
    length, d = config.context_length, model.d_model
    q, kv = model.q_width, model.kv_width
    positions = length if model.positions == "learned" else 0
    angles = 0 if config.pre_rope else length * model.rotary_dims
    parameters = (model.vocabulary_size + positions + q + 2 * kv) * d
    parameters += (q + 2 * kv) * model.biases
    parameters += d * model.norm_affine * (2 if model.family.norm_biased else 1)
    parameters += {"none": 0, "head": 2 * model.head_dim, "all": q + kv}[model.qk_norm]
    return LayerShape(
        vocabulary_size=model.vocabulary_size,
        d_model=d,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        norm=model.norm,
        positions=positions,
        angles=angles,
        normed_heads=model.qk_norm != "none",
        bytes=parameters * DTYPES[config.dtype].itemsize + 4 * angles,
    )


def _shape_from_seed(config: JobConfig, vocabulary_size: int) -> LayerShape:
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


def seeded_vocabulary(config: JobConfig, tokenizer: Tokenizer, largest_id: int) -> int:
    """Rows of the embedding that the seed makes."""
    if config.vocab_size == "corpus":
        return largest_id + 1
    if config.vocab_size in (None, "encoding"):
        return tokenizer.vocabulary_size
    return int(config.vocab_size or 0)
