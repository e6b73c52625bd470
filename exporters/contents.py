"""What an export holds of each window: the tensors by name, their dtypes and shapes."""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import torch

from exporters.manifest import Manifest
from kernels.layer import DTYPES


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: its dtype and its shape for a single window."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def window_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def window_tensors(
    export: Collection[str],
    *,
    context_length: int,
    layout: str,
    dtype: str,
    padded: bool = False,
    d_model: int = 0,
    heads: int = 0,
    kv_heads: int = 0,
    head_dim: int = 0,
) -> dict[str, TensorPlan]:
    """The tensors by name; where windows are stacked, their number is the first dimension.

    `export` names some of tokens, features and qkv; the widths are those of the layer. Where
    windows are `padded`, `mask` is true in the places that hold a real input with a real target.
    """
    plans = {"window_start": TensorPlan(torch.int64, ())}
    if padded:
        plans["mask"] = TensorPlan(torch.bool, (context_length,))
    if "tokens" in export:
        for name in ("input_ids", "target_ids", "document_ids"):
            plans[name] = TensorPlan(torch.int32, (context_length,))
    if "features" in export:
        plans["x"] = plans["y"] = TensorPlan(DTYPES[dtype], (context_length, d_model))
    if "qkv" in export:
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            by_head = (count, context_length, head_dim)
            by_token = (context_length, count, head_dim)
            plans[name] = TensorPlan(DTYPES[dtype], by_head if layout == "bhtd" else by_token)
    return plans


def exported_tensors(manifest: Manifest) -> dict[str, TensorPlan]:
    """The tensors of the windows of a committed export, full or compact."""
    widths = ("d_model", "heads", "kv_heads", "head_dim")
    layer = manifest.layer or dict.fromkeys(widths, 0)
    return window_tensors(
        manifest.job["export"],
        context_length=manifest.windows["context_length"],
        layout=manifest.job["layout"],
        dtype=manifest.job["dtype"],
        padded=manifest.padded,
        **{name: layer[name] for name in widths},
    )


def starts_tensors(*, padded: bool) -> dict[str, TensorPlan]:
    """The tensors of windows.safetensors by name."""
    plans = {"window_start": TensorPlan(torch.int64, ())}
    if padded:
        plans["window_pairs"] = TensorPlan(torch.int32, ())
    return plans


def window_bytes(plans: dict[str, TensorPlan]) -> int:
    """Bytes that one window takes."""
    return sum(plan.window_bytes for plan in plans.values())
