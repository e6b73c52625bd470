"""A FirstLayer as the kernels read it."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kernels.layer import FirstLayer, Norm
from kernels.rotary import Rotary


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """The parameters on one device, with q, k and v stacked into one matrix."""

    embedding: Tensor  # [V, d]
    weight: Tensor  # [F, d], F = (H + 2*Hk) * Dh
    bias: Tensor | None  # [F]
    position: Tensor | None  # [T, d]
    norm_weight: Tensor | None  # float32 [d]
    norm_bias: Tensor | None  # float32 [d]
    q_norm: Tensor | None  # float32 [Dh], or [H*Dh] where all heads are normalised together
    k_norm: Tensor | None  # float32 [Dh] or [Hk*Dh]
    rotary: Rotary | None
    heads: int
    kv_heads: int
    head_dim: int
    norm: Norm
    eps: float
    embedding_scale: float

    def on(self, device: torch.device) -> "PackedLayer":
        """The same parameters on a device of the same kind as the one that they were packed for."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: t.to(device) for name, t in values.items() if isinstance(t, Tensor)}
        rotary = None if self.rotary is None else self.rotary.on(device)
        return replace(self, **moved, rotary=rotary)  # type: ignore[arg-type]


def pack(layer: FirstLayer, device: torch.device) -> PackedLayer:
    """Stack the projections and move the layer to device.

    On the CPU everything but the embedding is widened to float32: the CPU path multiplies and
    accumulates in float32 whatever the dtype, since few CPUs multiply bfloat16 or float16 faster.
    """
    dtype = torch.float32 if device.type == "cpu" else layer.dtype

    def place(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, dtype).contiguous()

    def scale(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, torch.float32) + layer.norm_offset

    weights = [layer.q_weight, layer.k_weight, layer.v_weight]
    biases = [layer.q_bias, layer.k_bias, layer.v_bias]
    bias = None
    if any(b is not None for b in biases):
        pairs = zip(biases, weights, strict=True)
        bias = torch.cat([w.new_zeros(w.shape[0]) if b is None else b for b, w in pairs])
    return PackedLayer(
        embedding=layer.embedding.to(device).contiguous(),
        weight=torch.cat(weights).to(device, dtype),
        bias=place(bias),
        position=place(layer.position),
        norm_weight=scale(layer.norm_weight),
        norm_bias=None if layer.norm_bias is None else layer.norm_bias.to(device, torch.float32),
        q_norm=scale(layer.q_norm),
        k_norm=scale(layer.k_norm),
        rotary=None if layer.rotary is None else layer.rotary.on(device),
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        norm=layer.norm,
        eps=layer.eps,
        embedding_scale=layer.embedding_scale,
    )
