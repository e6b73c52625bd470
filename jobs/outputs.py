"""What a job writes and how large it is; how windows go into shards."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.contents import TensorPlan, starts_tensors, window_bytes, window_tensors
from exporters.space import readable
from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.layershape import LayerShape
from kernels.method import Method

MOST_SHARDS = 500_000  # of some 0.8 kB each in a manifest, which is read up to 512 MiB


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of tensors on disk, without headers and the manifest."""

    token_bytes: int
    weight_bytes: int
    table_bytes: int  # in the export if it is compact, else in .work/ until the end
    window_bytes: int
    shard_bytes: int  # of those, what is in shards
    total_bytes: int  # of the export
    disk_bytes: int  # the most that stands on the disk at once


def sizes(
    config: JobConfig,
    shape: LayerShape | None,
    method: Method | None,
    *,
    tokens: int,
    documents: int,
    distinct: int,
    windows: int,
) -> Sizes:
    """What a job writes, from its counts."""
    token_bytes = 4 * tokens + 8 * documents
    weight_bytes = shape.bytes if shape and config.save_weights else 0
    tables = shape.table_bytes(distinct) if shape and method and method.name == "tables" else 0
    per_window = window_bytes(shard_tensors(config, shape)) if config.artifact == "full" else 0
    shards = windows * per_window
    if config.boundaries == "split" or (config.artifact, config.sampling) == ("compact", "random"):
        per_window += window_bytes(starts_tensors(padded=config.tail == "pad"))
    all_windows = windows * per_window
    total = token_bytes + weight_bytes + all_windows
    return Sizes(
        token_bytes=token_bytes,
        weight_bytes=weight_bytes,
        table_bytes=tables,
        window_bytes=all_windows,
        shard_bytes=shards,
        total_bytes=total + (tables if config.artifact == "compact" else 0),
        disk_bytes=total + tables,
    )


def shard_tensors(config: JobConfig, shape: LayerShape | None) -> dict[str, TensorPlan]:
    """What the export of a job holds of each window."""
    if shape is None:
        return window_tensors(
            [name for name in config.export if name == "tokens"],
            context_length=config.context_length,
            layout=config.layout,
            dtype=config.dtype,
            padded=config.tail == "pad",
        )
    return window_tensors(
        config.export,
        context_length=config.context_length,
        layout=config.layout,
        dtype=config.dtype,
        padded=config.tail == "pad",
        d_model=shape.d_model,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )


def windows_per_shard(plans: dict[str, TensorPlan], shard_size: int, batch_size: int) -> int:
    """As many windows as fit shard_size, in whole batches where one fits; at least one window."""
    fit = max(1, shard_size // window_bytes(plans))
    return fit - fit % batch_size if fit >= batch_size else fit


def check_shards(config: JobConfig, windows: int, per_shard: int) -> None:
    """Raise ConfigError if windows would go into more shards than a manifest can name."""
    shards = -(-windows // per_shard)
    if config.artifact == "full" and shards > MOST_SHARDS:
        raise ConfigError(
            f"--shard-size {readable(config.shard_size)} would make {shards:,} shards, but a "
            f"manifest names at most {MOST_SHARDS:,}; give a larger one"
        )


def allocate(plans: Mapping[str, TensorPlan], windows: int, pinned: bool) -> dict[str, Tensor]:
    """Host buffers for the tensors of a shard, contents undefined."""
    return {
        name: torch.empty((windows, *plan.shape), dtype=plan.dtype, pin_memory=pinned)
        for name, plan in plans.items()
    }


def shard_name(index: int, total: int) -> str:
    """The name of a shard, counted from 0."""
    width = max(5, len(str(total)))
    return f"shards/shard-{index + 1:0{width}d}-of-{total:0{width}d}.safetensors"
