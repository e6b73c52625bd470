"""What a shard holds, how large everything is, and how many windows go into a shard."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from jobs.config import JobConfig
from jobs.layers import LayerShape
from kernels.layer import DTYPES


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of a shard: its dtype and its shape for a single window."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def window_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def shard_tensors(config: JobConfig, layer: LayerShape | None) -> dict[str, TensorPlan]:
    """The tensors of a shard by name; each gets the number of windows as its first dimension."""
    length = config.context_length
    plans = {"window_start": TensorPlan(torch.int64, ())}
    if "tokens" in config.export:
        for name in ("input_ids", "target_ids", "document_ids"):
            plans[name] = TensorPlan(torch.int32, (length,))
    if layer is not None:
        dtype = DTYPES[config.dtype]
        if "features" in config.export:
            plans["x"] = plans["y"] = TensorPlan(dtype, (length, layer.d_model))
        if "qkv" in config.export:
            for name, heads in (("q", layer.heads), ("k", layer.kv_heads), ("v", layer.kv_heads)):
                shape = (
                    (heads, length, layer.head_dim)
                    if config.layout == "bhtd"
                    else (length, heads, layer.head_dim)
                )
                plans[name] = TensorPlan(dtype, shape)
    return plans


def window_bytes(plans: dict[str, TensorPlan]) -> int:
    """Bytes that one window takes in a shard."""
    return sum(plan.window_bytes for plan in plans.values())


def windows_per_shard(plans: dict[str, TensorPlan], shard_size: int, batch_size: int) -> int:
    """As many windows as fit shard_size, in whole batches where one fits; at least one window."""
    fit = max(1, shard_size // window_bytes(plans))
    return fit - fit % batch_size if fit >= batch_size else fit


def allocate(plans: dict[str, TensorPlan], windows: int, pinned: bool) -> dict[str, Tensor]:
    """Host buffers for the tensors of a shard, contents undefined."""
    return {
        name: torch.empty((windows, *plan.shape), dtype=plan.dtype, pin_memory=pinned)
        for name, plan in plans.items()
    }


def shard_name(index: int, total: int) -> str:
    """The name of a shard, counted from 0."""
    width = max(5, len(str(total)))
    return f"shards/shard-{index + 1:0{width}d}-of-{total:0{width}d}.safetensors"
