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


@triton.jit
def store_qkv(
    q,
    q_stride_w,
    q_stride_h,
    q_stride_t,
    k,
    k_stride_w,
    k_stride_h,
    k_stride_t,
    v,
    v_stride_w,
    v_stride_h,
    v_stride_t,
    values,  # [BLOCK_M, BLOCK_N]
    columns,  # [BLOCK_N], of F
    first_column,
    window,  # [BLOCK_M]
    position,  # [BLOCK_M]
    row_mask,  # [BLOCK_M]
    Q_WIDTH: tl.constexpr,
    KV_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Store columns of [q | k | v], each to its tensor and head."""
    K_START: tl.constexpr = Q_WIDTH
    V_START: tl.constexpr = Q_WIDTH + KV_WIDTH
    F: tl.constexpr = Q_WIDTH + 2 * KV_WIDTH
    store_heads(
        q, q_stride_w, q_stride_h, q_stride_t, values, columns, first_column,
        window, position, row_mask, 0, K_START, HEAD_DIM, BLOCK_N, CACHE,
    )  # fmt: skip
    store_heads(
        k, k_stride_w, k_stride_h, k_stride_t, values, columns, first_column,
        window, position, row_mask, K_START, V_START, HEAD_DIM, BLOCK_N, CACHE,
    )  # fmt: skip
    store_heads(
        v, v_stride_w, v_stride_h, v_stride_t, values, columns, first_column,
        window, position, row_mask, V_START, F, HEAD_DIM, BLOCK_N, CACHE,
    )  # fmt: skip


def or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer for a parameter that is absent: any tensor will do, since it is never read."""
    return unused if tensor is None else tensor


def current(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current device, so make it the tensors' own."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
