"""Rotary positions: each pair of values of a head of q and k is turned by an angle of its position.

Source: Su et al., "RoFormer", section 3.2 (arXiv 2104.09864). Frequencies and how models scale them
are in kernels/frequencies.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """The angles of T positions, for the first R values of a head; the others are left alone.

    Pair i is (x[i], x[i + R/2]), or (x[2i], x[2i + 1]) where pairs are interleaved.
    """

    cos: Tensor  # float32 [T, R/2], times the factor by which some models lengthen q and k
    sin: Tensor  # float32 [T, R/2]
    interleaved: bool

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the first and of the second values of all pairs: x [..., Dh] -> [..., R/2]."""
        half = self.cos.shape[1]
        if self.interleaved:
            return x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        return x[..., :half], x[..., half : 2 * half]

    def on(self, device: torch.device) -> "Rotary":
        """The same angles on a device."""
        return Rotary(self.cos.to(device), self.sin.to(device), self.interleaved)


def rotary_of(
    inverse_frequency: Tensor, positions: int, factor: float = 1.0, interleaved: bool = False
) -> Rotary:
    """The angles p * f of positions 0 to T-1, as models form them: in float32.

    Args:
        inverse_frequency: float32 [R/2].
        positions: T.
        factor: of cos and sin, 1 unless a scaling says otherwise.
    """
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequency
    return Rotary(angle.cos() * factor, angle.sin() * factor, interleaved)


def rotate_(x: Tensor, rotary: Rotary, positions: slice) -> None:
    """Turn x [w, t, heads, Dh] in place, for the given positions: its dimension t."""
    first, second = rotary.pairs(x)
    cos, sin = rotary.cos[positions].unsqueeze(1), rotary.sin[positions].unsqueeze(1)
    turned = first * sin
    first.mul_(cos).sub_(second * sin)
    second.mul_(cos).add_(turned)
