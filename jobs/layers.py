"""Which first layer a job uses: a model's, from a weights file, or made from the seed."""

import os
from dataclasses import replace
from typing import Any

from exporters.errors import WeightsError
from exporters.layerfile import load_layer
from jobs.checkpoints import load_checkpoint
from jobs.choose_tokenizer import check_vocabulary
from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.layershape import LayerShape, seeded_vocabulary
from jobs.modelconfig import Model, read_model
from jobs.owned import owned
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer
from kernels.layer import DTYPES, FirstLayer, seeded_layer


def model_of(config: JobConfig, tokenizer: Tokenizer, reporter: Reporter) -> Model | None:
    """What config.json says where --weights is a model's folder; None where it is none.

    What a user should know of it is said aloud.

    Raises:
        WeightsError: if it cannot be used.
        ConfigError: if options do not fit it, or the tokenizer has more tokens than its embedding.
    """
    if config.weights is None or not os.path.isdir(config.weights):
        return None
    where = f"--weights {config.weights}"
    if config.positions is not None:
        raise ConfigError(f"--positions has no effect with the model in {where}; leave it out")
    model = read_model(config.weights, context_length=config.context_length)
    for name in ("d_model", "heads", "kv_heads"):
        asked, found = getattr(config, name), getattr(model, name)
        if asked not in (None, found):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {asked} does not fit {where}, which has {found}")
    if config.pre_rope and model.rope is None:
        raise _no_rope(model.positions)
    check_vocabulary(tokenizer, model.vocabulary_size, where)
    for note in model.notes:
        reporter.note(f"{where}: {note}")
    return model


def load_weights(config: JobConfig, model: Model | None) -> FirstLayer | None:
    """The layer of --weights in the job's dtype; None where it will be made from the seed.

    It is in memory of our own: whoever writes to the file from then on changes nothing.

    Args:
        model: as `model_of` gives it.

    Raises:
        WeightsError: if the file or folder cannot be used.
        LayerError: if a value does not fit the dtype.
    """
    if config.weights is None:
        return None
    dtype = DTYPES[config.dtype]
    if model is not None:
        layer = load_checkpoint(config.weights, context_length=config.context_length, dtype=dtype)
        return _unturned(config, layer)
    layer = load_layer(
        config.weights,
        context_length=config.context_length,
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=config.kv_heads,
        positions=config.positions,
    )
    return _unturned(config, owned(layer) if layer.dtype == dtype else layer.to(dtype))


def make_layer(config: JobConfig, tokenizer: Tokenizer, largest_id: int) -> FirstLayer:
    """The layer from the seed, in the job's dtype."""
    d_model, heads, kv_heads = config.seeded_widths
    layer = seeded_layer(
        vocabulary_size=seeded_vocabulary(config, tokenizer, largest_id),
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        context_length=config.context_length,
        positions=config.seeded_positions,
        seed=config.seed,
    )
    return _unturned(config, layer.to(DTYPES[config.dtype]))


def _unturned(config: JobConfig, layer: FirstLayer) -> FirstLayer:
    """The layer without its rotary positions where --pre-rope asks so.

    Raises:
        ConfigError: if it has none.
    """
    if not config.pre_rope:
        return layer
    if layer.rotary is None:
        raise _no_rope(layer.positions)
    return replace(layer, rotary_cos=None, rotary_sin=None, positions="none")


def _attention_scale(config: JobConfig, model: Model | None, layer: FirstLayer) -> float | None:
    """What attention multiplies q k^T by; None for a file of weights, which does not say."""
    if model is not None:
        return model.attention_scale
    return float(layer.head_dim**-0.5) if config.weights is None else None


def _no_rope(positions: str) -> ConfigError:
    return ConfigError(f"--pre-rope has no effect: positions are {positions}; leave it out")


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


def describe_layer(
    config: JobConfig, model: Model | None, layer: FirstLayer, weights_sha256: str
) -> dict[str, Any]:
    """The layer's section of the manifest."""
    source = "weights" if model is None else "model"
    return {
        "source": "seed" if config.weights is None else source,
        "file": None if config.weights is None else config.weights.absolute().name,
        "family": None if model is None else model.model_type,
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
        "rotary_dims": layer.rotary_dims,
        "rotary_interleaved": layer.rotary_interleaved,
        "embedding_scale": layer.embedding_scale,
        "attention_scale": _attention_scale(config, model, layer),
        "dtype": config.dtype,
    }
