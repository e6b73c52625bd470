"""The frequencies of rotary positions, and how models stretch them to longer windows.

Everything is formed in float32 and in the order of operations of transformers, since cos and sin of
large angles hang on the last bits: what is exported is what such a model's attention sees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frequencies:
    """What turns q and k: the angle of pair i at position p is p * inverse[i]."""

    inverse: Tensor  # float32 [R/2]
    factor: float = 1.0  # of cos and sin, so that q and k grow by it


def inverse_frequencies(theta: float | Tensor, dims: int) -> Tensor:
    """theta^(-2i/R) for i below R/2, float32 [R/2]. Source: arXiv 2104.09864, equation 15."""
    inverse: Tensor = 1.0 / (theta ** (torch.arange(0, dims, 2, dtype=torch.float) / dims))
    return inverse


def linear(theta: float, dims: int, *, factor: float) -> Frequencies:
    """Position interpolation: positions divided by a factor. Source: arXiv 2306.15595."""
    return Frequencies(inverse_frequencies(theta, dims) / factor)


def dynamic(
    theta: float, dims: int, *, factor: float, context_length: int, trained_length: int
) -> Frequencies:
    """Dynamic NTK: theta grows with windows longer than those of training.

        theta' = theta * (factor * T / T0 - (factor - 1))^(R / (R - 2))

    Source: "NTK-aware scaled RoPE", as arXiv 2309.00071 describes it in section 3.3.
    """
    if context_length <= trained_length:
        return Frequencies(inverse_frequencies(theta, dims))
    # A tensor, so that this is rounded to float32 where models round it.
    length = torch.tensor(context_length)
    grown = (factor * length / trained_length) - (factor - 1)
    return Frequencies(inverse_frequencies(theta * grown ** (dims / (dims - 2)), dims))


def llama3(
    theta: float,
    dims: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    trained_length: int,
) -> Frequencies:
    """Long waves are stretched by a factor, short ones kept, those between blended.

    Source: "The Llama 3 Herd of Models" (arXiv 2407.21783) and the code published with Llama 3.1.
    """
    inverse = inverse_frequencies(theta, dims)
    wave = 2 * math.pi / inverse
    longest, shortest = trained_length / low_freq_factor, trained_length / high_freq_factor
    stretched = torch.where(wave > longest, inverse / factor, inverse)
    blend = (trained_length / wave - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - blend) * stretched / factor + blend * stretched
    between = ~(wave < shortest) & ~(wave > longest)
    return Frequencies(torch.where(between, blended, stretched))


def yarn(
    theta: float,
    dims: int,
    *,
    factor: float,
    trained_length: int,
    attention_factor: float | None,
    beta_fast: float,
    beta_slow: float,
    mscale: float | None,
    mscale_all_dim: float | None,
    truncate: bool,
) -> Frequencies:
    """YaRN: interpolation by parts, and q and k lengthened. Source: arXiv 2309.00071, section 3."""

    def dimension(rotations: float) -> float:
        """The dimension whose wave turns so often in the windows of training."""
        return (dims * math.log(trained_length / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(dims // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    waves = theta ** (torch.arange(0, dims, 2, dtype=torch.float) / dims)
    kept, stretched = 1.0 / waves, 1.0 / (factor * waves)
    extrapolated = 1 - ramp
    inverse = stretched * (1 - extrapolated) + kept * extrapolated
    if attention_factor is None:
        if mscale and mscale_all_dim:
            attention_factor = _yarn_length(factor, mscale) / _yarn_length(factor, mscale_all_dim)
        else:
            attention_factor = _yarn_length(factor, 1.0)
    return Frequencies(inverse, attention_factor)


def longrope(
    theta: float,
    dims: int,
    *,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    attention_factor: float | None,
    factor: float,
    context_length: int,
    trained_length: int,
) -> Frequencies:
    """LongRoPE: a factor for each frequency, one set for long windows. Source: arXiv 2402.13753."""
    factors = long_factor if context_length > trained_length else short_factor
    exponents = torch.arange(0, dims, 2, dtype=torch.int64).float() / dims
    inverse = 1.0 / (torch.tensor(factors, dtype=torch.float32) * theta**exponents)
    if attention_factor is None:
        attention_factor = 1.0
        if factor > 1.0:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained_length))
    return Frequencies(inverse, attention_factor)


def _yarn_length(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
