"""What follows the projection of method `direct` on a GPU: q and k normalised and turned, in place.

A launch of its own after direct's: the norm needs all of a head, or of all heads, which need not
lie in one tile of the product. It reads and writes q and k once more; x still never reaches memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.packed import PackedLayer
from kernels.triton_common import current, or_unused

BLOCK_M = 16  # tokens
NUM_WARPS = 4
FP_FUSION = False  # a sum and a product are rounded one by one, as on the CPU


@triton.jit(do_not_specialize=["N"])
def finish_kernel(
    out,  # q or k: [W, heads, T, Dh] by strides
    stride_w,
    stride_h,
    stride_t,
    norm,  # float32 [NORM_WIDTH]
    cos,  # float32 [T, R/2]
    sin,  # float32 [T, R/2]
    N,
    T,
    eps,
    HEADS_TOGETHER: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM_WIDTH: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise and turn HEADS_TOGETHER heads of BLOCK_M tokens.

    Values of a head are taken in pairs, [BLOCK_M, BLOCK_D] firsts and seconds: those that turn
    together, then what is left in any order.
    """
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_head = tl.program_id(1).to(tl.int64) * HEADS_TOGETHER
    mask = tokens < N
    position = tokens % T
    rows = out + (tokens // T) * stride_w + position * stride_t

    HALVES: tl.constexpr = (HEAD_DIM + 1) // 2
    LEFT: tl.constexpr = HALVES - PAIRS  # pairs that do not turn; of an odd head, one is half empty
    i = tl.arange(0, BLOCK_D)
    if INTERLEAVED:
        first = tl.where(i < PAIRS, i + i, PAIRS + i)
        second = tl.where(i < PAIRS, i + i + 1, PAIRS + LEFT + i)
    else:
        first = tl.where(i < PAIRS, i, PAIRS + i)
        second = tl.where(i < PAIRS, PAIRS + i, PAIRS + LEFT + i)
    has_first = mask[:, None] & (i < HALVES)[None, :]
    has_second = mask[:, None] & ((i < HALVES) & (second < HEAD_DIM))[None, :]
    turns = mask[:, None] & (i < PAIRS)[None, :]
    if PAIRS > 0:
        angles = position[:, None] * PAIRS + i[None, :]
        c = tl.load(cos + angles, mask=turns, other=0.0)
        s = tl.load(sin + angles, mask=turns, other=0.0)

    if HAS_NORM:
        squares = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for h in range(HEADS_TOGETHER):
            head = rows + (first_head + h) * stride_h
            a = tl.load(head[:, None] + first[None, :], mask=has_first, other=0.0).to(tl.float32)
            b = tl.load(head[:, None] + second[None, :], mask=has_second, other=0.0).to(tl.float32)
            squares += a * a + b * b
        mean = tl.sum(squares, 1) / NORM_WIDTH
        rescale = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
    for h in range(HEADS_TOGETHER):
        head = rows + (first_head + h) * stride_h
        a = tl.load(head[:, None] + first[None, :], mask=has_first, other=0.0).to(tl.float32)
        b = tl.load(head[:, None] + second[None, :], mask=has_second, other=0.0).to(tl.float32)
        if HAS_NORM:
            place = h * HEAD_DIM % NORM_WIDTH
            weight_a = tl.load(norm + place + first, mask=i < HALVES, other=0.0)
            weight_b = tl.load(
                norm + place + second, mask=(i < HALVES) & (second < HEAD_DIM), other=0.0
            )
            a = a * rescale[:, None] * weight_a[None, :]
            b = b * rescale[:, None] * weight_b[None, :]
        if PAIRS > 0:
            # Chosen, not multiplied by 1 and 0: infinity times 0 is no number.
            turned = tl.where(turns, b * c + a * s, b)
            a = tl.where(turns, a * c - b * s, a)
            b = turned
        tl.store(head[:, None] + first[None, :], a.to(out.dtype.element_ty), mask=has_first)
        tl.store(head[:, None] + second[None, :], b.to(out.dtype.element_ty), mask=has_second)


def finish(layer: PackedLayer, q: Tensor, k: Tensor) -> None:
    """Normalise and turn q [W, H, T, Dh] and k [W, Hk, T, Dh] in place, where the layer does so.

    They may have any strides for W, H and T; their last dimension must be contiguous.
    """
    rotary = layer.rotary
    for out, norm in ((q, layer.q_norm), (k, layer.k_norm)):
        if norm is None and rotary is None:
            continue
        windows, heads, length, head_dim = out.shape
        together = 1 if norm is None else len(norm) // head_dim
        count = windows * length
        with current(out.device):
            finish_kernel[(triton.cdiv(count, BLOCK_M), heads // together)](
                out,
                *out.stride()[:3],
                or_unused(norm, out),
                or_unused(rotary.cos if rotary else None, out),
                or_unused(rotary.sin if rotary else None, out),
                count,
                length,
                layer.eps,
                HEADS_TOGETHER=together,
                HEAD_DIM=head_dim,
                NORM_WIDTH=head_dim if norm is None else len(norm),
                HAS_NORM=norm is not None,
                PAIRS=rotary.cos.shape[1] if rotary else 0,
                INTERLEAVED=rotary.interleaved if rotary else False,
                BLOCK_M=BLOCK_M,
                BLOCK_D=triton.next_power_of_2((head_dim + 1) // 2),
                num_warps=NUM_WARPS,
                enable_fp_fusion=FP_FUSION,
            )
