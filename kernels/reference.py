"""The definition in plain torch, in the dtype of the layer: what every kernel is held against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layer import FirstLayer


def embed(layer: FirstLayer, ids: Tensor) -> Tensor:
    """x = s * E[t] + P[p]: ids [W, T] -> x [W, T, d]."""
    x = F.embedding(ids.long(), layer.embedding)
    if layer.embedding_scale != 1.0:
        x = x * layer.embedding_scale
    if layer.position is not None:
        x = x + layer.position[: ids.shape[1]]
    return x


def normalise(layer: FirstLayer, x: Tensor) -> Tensor:
    """x, or LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) of it, over d."""
    shape = (layer.d_model,)
    if layer.norm == "layernorm":
        wide, weight = _with_offset(layer, x, layer.norm_weight)
        bias = None if layer.norm_bias is None else layer.norm_bias.to(wide.dtype)
        return F.layer_norm(wide, shape, weight, bias, layer.eps).to(x.dtype)
    if layer.norm == "rmsnorm":
        return _rms_norm(layer, x, layer.norm_weight)
    return x


def project(layer: FirstLayer, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids [W, T] -> q [W, H, T, Dh], k and v [W, Hk, T, Dh], as three linear layers.

    q and k are then normalised and turned, where the layer does so.
    """
    z = normalise(layer, embed(layer, ids))

    def heads(weight: Tensor, bias: Tensor | None, count: int, norm: Tensor | None) -> Tensor:
        out = F.linear(z, weight, bias)
        if norm is not None:
            out = _rms_norm(layer, out.view(*ids.shape, -1, len(norm)), norm)
        return out.view(*ids.shape, count, layer.head_dim).transpose(1, 2)

    return (
        rotate(layer, heads(layer.q_weight, layer.q_bias, layer.heads, layer.q_norm)),
        rotate(layer, heads(layer.k_weight, layer.k_bias, layer.kv_heads, layer.k_norm)),
        heads(layer.v_weight, layer.v_bias, layer.kv_heads, None),
    )


def rotate(layer: FirstLayer, x: Tensor) -> Tensor:
    """x [W, heads, T, Dh], turned by rotary positions where the layer has them."""
    rotary = layer.rotary
    if rotary is None:
        return x
    length = x.shape[2]
    cos, sin = (table[:length].to(x.dtype) for table in (rotary.cos, rotary.sin))
    out = x.clone()
    (first, second), (new_first, new_second) = rotary.pairs(x), rotary.pairs(out)
    new_first.copy_(first * cos - second * sin)
    new_second.copy_(second * cos + first * sin)
    return out


def _rms_norm(layer: FirstLayer, x: Tensor, weight: Tensor | None) -> Tensor:
    """RMSNorm over the last dimension."""
    wide, weight = _with_offset(layer, x, weight)
    return F.rms_norm(wide, (x.shape[-1],), weight, layer.eps).to(x.dtype)


def _with_offset(
    layer: FirstLayer, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x and the weight of its norm; where an offset is added to it, both in float32 or more."""
    if weight is None or layer.norm_offset == 0.0:
        return x, weight
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide), weight.to(wide) + layer.norm_offset


def in_float64(layer: FirstLayer) -> FirstLayer:
    """The layer with the same parameter values, to compute in float64."""
    return layer.to(torch.float64)


def largest_error(found: Tensor, truth: Tensor) -> float:
    """The largest absolute difference of a result from float64, NaN where a value is NaN.

    A value of `truth` [...] beyond the range of found's dtype is right as infinity.
    """
    overflows = torch.isinf(found) & (found == truth.to(found.dtype))
    return float((found.double() - truth).abs().masked_fill(overflows, 0).max())


def allowed_error(torchs: Tensor, truth: Tensor) -> float:
    """The error rule: at most twice the error of torch doing the same in the same dtype.

    A result that is correct to the dtype's last place is always right: small outputs may be luckily
    exact in torch. Values that overflow in torch give no measure.
    """
    errors = (torchs.double() - truth).abs()
    torch_error = float(errors.nan_to_num(0, posinf=0).max())
    last_place = torch.finfo(torchs.dtype).eps * float(truth.abs().max()) / 2
    return max(2 * torch_error, last_place)
