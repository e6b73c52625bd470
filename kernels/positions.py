"""Position tables that come from a formula."""

import math

import torch
from torch import Tensor


def sinusoidal(context_length: int, d_model: int) -> Tensor:
    """The sinusoidal position table, float32 [T, d].

        P[p, 2i] = sin(p / 10000^(2i/d)),  P[p, 2i+1] = cos(p / 10000^(2i/d))

    Source: Vaswani et al., "Attention Is All You Need", section 3.5 (arXiv 1706.03762). The
    frequencies are taken through exp and log in float32, which is how they are commonly written
    in torch, so the table is equal to that code to the last bit. An odd d has one cosine fewer.
    """
    position = torch.arange(0, context_length, dtype=torch.float).unsqueeze(1)  # [T, 1]
    frequency = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
    angle = position * frequency  # [T, ceil(d/2)]
    table = torch.empty(context_length, d_model)
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle[:, : d_model // 2])
    return table
