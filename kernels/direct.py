"""Method `direct` on the CPU: gather, add, normalise, project and turn, block by block.

The GPU's body of the same two functions is in direct_triton.py.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.alone import each_alone
from kernels.blocks import blocks
from kernels.packed import PackedLayer
from kernels.rotary import rotate_

# Rows of a block are chosen so that x and [q | k | v] stay in the caches: of 128 to 2048 rows, 512
# was best at d=768 and the most rows at d=64.
BLOCK_BYTES = 6 << 20
MIN_BLOCK_ROWS = 256
MAX_BLOCK_ROWS = 2048


def block_rows(layer: PackedLayer) -> int:
    """Tokens that are computed at once; a function of the layer alone, so that bits are too."""
    total_width, d = layer.weight.shape
    rows = BLOCK_BYTES // (4 * (d + total_width))
    return max(MIN_BLOCK_ROWS, min(rows, MAX_BLOCK_ROWS))


def embed(layer: PackedLayer, ids: Tensor, out: Tensor) -> None:
    """Write x = s * E[t] + P[p] for ids [W, T] into out [W, T, d], contiguous.

    Ids must lie in [0, V): they are not checked here.
    """
    for windows, positions in blocks(ids, block_rows(layer)):
        x = _embed_block(layer, ids[windows, positions], positions)
        out[windows, positions] = x.view(*ids[windows, positions].shape, -1)


def project(layer: PackedLayer, ids: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Write q [W, H, T, Dh], k and v [W, Hk, T, Dh] for ids [W, T].

    Computed in float32 and rounded once, to the dtype of the outputs, which may be of any strides.
    Ids must lie in [0, V): they are not checked here.

    Raises:
        ValueError: if windows are longer than the positions.
    """
    place = layer.position if layer.rotary is None else layer.rotary.cos
    if place is not None and ids.shape[1] > len(place):
        raise ValueError(f"{ids.shape[1]} tokens a window, but {len(place)} positions")
    rows = block_rows(layer)
    heads = [layer.heads, layer.kv_heads, layer.kv_heads]

    own = threading.local()

    def compute(block: tuple[slice, slice]) -> None:
        windows, positions = block
        ids_of_block = ids[block]
        z = _normalise(layer, _embed_block(layer, ids_of_block, positions))
        if not hasattr(own, "buffer"):
            own.buffer = torch.empty(rows, len(layer.weight))
        out = own.buffer[: len(z)]
        if layer.bias is None:
            torch.mm(z, layer.weight.t(), out=out)
        else:
            torch.addmm(layer.bias, z, layer.weight.t(), out=out)
        by_head = out.view(*ids_of_block.shape, sum(heads), layer.head_dim)
        parts = torch.split(by_head, heads, dim=2)
        for part, norm in zip(parts, (layer.q_norm, layer.k_norm), strict=False):
            _finish(layer, part, norm, positions)
        for target, part in zip((q, k, v), parts, strict=True):
            target[windows, :, positions].copy_(part.transpose(1, 2))

    each_alone(compute, blocks(ids, rows), ids.numel() * layer.weight.numel())


def _embed_block(layer: PackedLayer, ids: Tensor, positions: slice) -> Tensor:
    """ids [w, t] at the given positions -> x [w*t, d], float32."""
    x = layer.embedding.index_select(0, ids.reshape(-1)).float()
    if layer.embedding_scale != 1.0:
        x *= layer.embedding_scale
    if layer.position is not None:
        x.view(*ids.shape, -1).add_(layer.position[positions])
    return x


def _finish(layer: PackedLayer, part: Tensor, norm: Tensor | None, positions: slice) -> None:
    """Normalise and turn a block of q or k [w, t, heads, Dh], in place."""
    if norm is not None:
        rows = part.reshape(*part.shape[:2], -1, len(norm))
        part.copy_(F.rms_norm(rows, (len(norm),), norm, layer.eps).view(part.shape))
    if layer.rotary is not None:
        rotate_(part, layer.rotary, positions)


def _normalise(layer: PackedLayer, x: Tensor) -> Tensor:
    shape = (x.shape[1],)
    if layer.norm == "layernorm":
        return F.layer_norm(x, shape, layer.norm_weight, layer.norm_bias, layer.eps)
    if layer.norm == "rmsnorm":
        return F.rms_norm(x, shape, layer.norm_weight, layer.eps)
    return x
