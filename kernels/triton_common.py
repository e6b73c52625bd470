"""What the files with Triton kernels share: storing by head, and how to launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_heads(
    out,  # q, k or v: [W, heads, T, Dh] by strides
    stride_w,
    stride_h,
    stride_t,
    values,  # [BLOCK_M, BLOCK_N]
    columns,  # [BLOCK_N], of F
    first_column,
    window,  # [BLOCK_M]
    position,  # [BLOCK_M]
    row_mask,  # [BLOCK_M]
    START: tl.constexpr,
    STOP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Store those columns that lie in [START, STOP), each to its head."""
    if (first_column < STOP) & (first_column + BLOCK_N > START):
        column = (columns - START).to(tl.int64)
        row = window * stride_w + position * stride_t
        place = (column // HEAD_DIM) * stride_h + column % HEAD_DIM
        inside = (columns >= START) & (columns < STOP)
        tl.store(
            out + row[:, None] + place[None, :],
            values.to(out.dtype.element_ty),
            mask=row_mask[:, None] & inside[None, :],
            cache_modifier=CACHE,
        )


def or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer for a parameter that is absent: any tensor will do, since it is never read."""
    return unused if tensor is None else tensor


def current(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current device, so make it the tensors' own."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
