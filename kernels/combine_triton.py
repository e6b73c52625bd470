"""Method `tables` on a GPU: gather rows of A, add B, rescale, turn, cast, store, in one launch.

The windows are cut into SEGMENTS of as many. A program owns BLOCK_M places of a segment and BLOCK_N
of the F columns of all heads, and goes through the segments: in all of them these places have the
same positions, so that B is read once for all. Programs go through all places before they move to
the next columns: the tables of the heads that are in use then stay in the L2 cache however the
tokens repeat, and A is read from memory once a launch. Outputs are stored past the cache, so that
they do not push A out of it.

Where q and k turn, a column is turned with its partner's value, which is gathered beside it: it is
of the same row and head, so that the caches have it.

A norm takes a launch of its own before, which writes the length of x for every token: the blocks
of columns share it, and x is a fraction of the bytes that combining moves.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import DeviceError
from kernels.tables import NormTables, Tables, recompute, rescaling
from kernels.triton_common import current, or_unused, store_qkv

# Of 50 tiles of 16 or 32 tokens, 64 to 256 columns, 4 to 64 segments and 4 or 8 warps, the one that
# is within 5% of the best on an H200 for d=768 and 4096, bfloat16 and float32; without segments it
# took 1.15 to 1.3 times as long.
BLOCK_M, BLOCK_N = 16, 64  # tokens and columns of F
MOST_SEGMENTS = 16
ODD_BLOCK_M = 8  # tokens where heads are not aligned, whose many addresses would spill otherwise
NORM_BLOCK_M, NORM_BLOCK_K = 16, 128  # tokens and columns of d
NUM_WARPS = 4
FP_FUSION = False  # a sum and a product are rounded one by one, as on the CPU: the same bits


@triton.jit(do_not_specialize=["N", "SEGMENT"])
def combine_kernel(
    rows,  # int32 [N], N = W*T: the row of A for each token
    a,  # float32 [H + 2 Hk, U, Dh]
    b,  # float32 [H + 2 Hk, >= T, Dh]
    scale,  # float32 [N]
    c,  # float32 [F]
    cos,  # float32 [T, R/2]
    sin,  # float32 [T, R/2]
    q,
    k,
    v,
    q_stride_w,
    q_stride_h,
    q_stride_t,
    k_stride_w,
    k_stride_h,
    k_stride_t,
    v_stride_w,
    v_stride_h,
    v_stride_t,
    a_stride_h,
    b_stride_h,
    N,
    SEGMENT,  # tokens of a segment, a multiple of T
    T,
    SEGMENTS: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    KV_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PAIRS: tl.constexpr,  # R/2, or 0 where nothing turns
    INTERLEAVED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    F: tl.constexpr = Q_WIDTH + 2 * KV_WIDTH
    program = tl.program_id(0)
    blocks_m = tl.cdiv(SEGMENT, BLOCK_M)
    first_column = (program // blocks_m) * BLOCK_N
    tokens = (program % blocks_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = first_column + tl.arange(0, BLOCK_N)
    in_segment = tokens < SEGMENT
    in_columns = columns < F
    position = tokens % T
    head = (columns // HEAD_DIM).to(tl.int64)
    dim = columns % HEAD_DIM
    rows_a = a + (head * a_stride_h)[None, :]
    if HAS_POSITION:
        inside = in_segment[:, None]
        if F % BLOCK_N:
            inside = inside & in_columns[None, :]
        addend = tl.load(
            b + (position * HEAD_DIM)[:, None] + (head * b_stride_h + dim)[None, :],
            mask=inside,
            other=0.0,
        )
    if HAS_NORM:
        constant = tl.load(c + columns, mask=in_columns, other=0.0)[None, :]
    if PAIRS > 0:
        if INTERLEAVED:
            is_first = dim % 2 == 0
            pair = dim // 2
            partner = tl.where(is_first, dim + 1, dim - 1)
        else:
            is_first = dim < PAIRS
            pair = tl.where(is_first, dim, dim - PAIRS)
            partner = tl.where(is_first, dim + PAIRS, dim - PAIRS)
            if PAIRS % 4 == 0 and HEAD_DIM % 4 == 0:
                pair = tl.max_contiguous(tl.multiple_of(pair, 4), 4)
                partner = tl.max_contiguous(tl.multiple_of(partner, 4), 4)
        turns = (dim < 2 * PAIRS) & (columns < Q_WIDTH + KV_WIDTH)
        turned = in_segment[:, None] & turns[None, :]
        angles = position[:, None] * PAIRS + pair[None, :]
        cosine = tl.load(cos + angles, mask=turned, other=0.0)
        sine = tl.load(sin + angles, mask=turned, other=0.0)
        sign = tl.where(is_first, -1.0, 1.0)[None, :]

    mask = in_segment & (tokens < N)
    row = tl.load(rows + tokens, mask=mask, other=0).to(tl.int64)
    for segment in tl.range(SEGMENTS, num_stages=1):
        inside = mask[:, None]
        if F % BLOCK_N:
            inside = inside & in_columns[None, :]
        places = rows_a + (row * HEAD_DIM)[:, None]
        value = tl.load(places + dim[None, :], mask=inside, other=0.0, eviction_policy="evict_last")
        if PAIRS > 0:
            other = tl.load(places + partner[None, :], mask=turned & mask[:, None], other=0.0)
            value = tl.where(turns[None, :], value * cosine + sign * (other * sine), value)
        if HAS_POSITION:
            value += addend
        if HAS_NORM:
            value *= tl.load(scale + tokens, mask=mask, other=0.0)[:, None]
            value += constant
        # Asked for before the values are stored, so that they need not be waited for.
        next_tokens = tokens + SEGMENT
        next_mask = in_segment & (next_tokens < N) & (segment + 1 < SEGMENTS)
        row = tl.load(rows + next_tokens, mask=next_mask, other=0).to(tl.int64)
        store_qkv(
            q, q_stride_w, q_stride_h, q_stride_t, k, k_stride_w, k_stride_h, k_stride_t,
            v, v_stride_w, v_stride_h, v_stride_t, value, columns, first_column,
            tokens // T, position, mask, Q_WIDTH, KV_WIDTH, HEAD_DIM, BLOCK_N, ".cs",
        )  # fmt: skip
        tokens, mask = next_tokens, next_mask


@triton.jit(do_not_specialize=["N"])
def lengths_kernel(
    rows,  # int32 [N]
    e,  # float32 [U, D]
    p,  # float32 [T, D]
    means,  # float32 [N]
    out,  # float32 [N]
    N,
    T,
    D: tl.constexpr,
    HAS_MEANS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The length of e[row] + p[position] - mean for each token."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = tokens < N
    row = tl.load(rows + tokens, mask=mask, other=0).to(tl.int64)
    rows_e = e + row * D
    rows_p = p + (tokens % T) * D
    if HAS_MEANS:
        mean = tl.load(means + tokens, mask=mask, other=0.0)
    squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, D, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        inside = mask[:, None]
        if D % BLOCK_K:
            inside = inside & (ks < D)[None, :]
        x = tl.load(rows_e[:, None] + ks[None, :], mask=inside, other=0.0)
        x += tl.load(rows_p[:, None] + ks[None, :], mask=inside, other=0.0)
        if HAS_MEANS:
            x = tl.where(inside, x - mean[:, None], 0.0)
        squares += x * x
    tl.store(out + tokens, tl.sqrt_rn(tl.sum(squares, 1)), mask=mask)


def combine(tables: Tables, rows: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Write q [W, H, T, Dh], k and v [W, Hk, T, Dh] for rows of A, int32 [W, T] in [0, U).

    Computed in float32 and rounded once. The outputs may have any strides for W, H and T; their
    last dimension must be contiguous. Every output hangs on its token and position alone.

    Raises:
        ValueError: if the outputs are of other strides, or windows longer than the positions.
        DeviceError: if bfloat16 is asked of Triton's interpreter, which rounds it wrongly.
    """
    if any(tensor.stride(3) != 1 for tensor in (q, k, v)):
        raise ValueError("the last dimension of q, k and v must be contiguous")
    tables.check_length(rows.shape[1])
    if rows.device.type == "cpu" and q.dtype == torch.bfloat16:
        raise DeviceError("Triton's interpreter rounds bfloat16 wrongly; use float32 or float16")
    if rows.numel() == 0:
        return
    rows = rows.contiguous()
    table, norm, rotary = tables.token_table, tables.norm, tables.rotary
    addends = or_unused(tables.position_table, table)
    scale = lost = None
    if norm is not None:
        scale, lost = rescaling(norm, rows, _lengths(norm, rows).double().square())
    segments = segments_of(len(rows))
    segment = triton.cdiv(len(rows), segments) * rows.shape[1]
    block_m = tokens_per_program(tables.head_dim)
    blocks = triton.cdiv(segment, block_m) * triton.cdiv(tables.total_width, BLOCK_N)
    with current(rows.device):
        combine_kernel[(blocks,)](
            rows,
            table,
            addends,
            or_unused(scale, table),
            table if norm is None else norm.constant,
            or_unused(rotary.cos if rotary else None, table),
            or_unused(rotary.sin if rotary else None, table),
            q,
            k,
            v,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            table.stride(0),
            addends.stride(0),
            rows.numel(),
            segment,
            rows.shape[1],
            SEGMENTS=segments,
            Q_WIDTH=tables.heads * tables.head_dim,
            KV_WIDTH=tables.kv_heads * tables.head_dim,
            HEAD_DIM=tables.head_dim,
            HAS_POSITION=tables.position_table is not None,
            HAS_NORM=norm is not None,
            PAIRS=rotary.cos.shape[1] if rotary else 0,
            INTERLEAVED=rotary.interleaved if rotary else False,
            BLOCK_M=block_m,
            BLOCK_N=BLOCK_N,
            num_warps=NUM_WARPS,
            enable_fp_fusion=FP_FUSION,
        )
    if lost is not None:
        recompute(tables, rows, lost, (q, k, v))


def tokens_per_program(head_dim: int) -> int:
    """BLOCK_M of the combining kernel."""
    return BLOCK_M if head_dim % 16 == 0 else ODD_BLOCK_M


def segments_of(windows: int) -> int:
    """Segments that so many windows are cut into: a power of two, so that few kernels compile."""
    return min(MOST_SEGMENTS, 1 << (windows.bit_length() - 1))


def _lengths(norm: NormTables, rows: Tensor) -> Tensor:
    """Lengths of x = s E[t] + P[p], without its mean for layernorm, float32 [W, T]."""
    lengths = torch.empty(rows.shape, device=rows.device)
    means = norm.means(rows)
    with current(rows.device):
        lengths_kernel[(triton.cdiv(rows.numel(), NORM_BLOCK_M),)](
            rows,
            norm.token_features,
            norm.position_features,
            or_unused(means, lengths),
            lengths,
            rows.numel(),
            rows.shape[1],
            D=norm.token_features.shape[1],
            HAS_MEANS=means is not None,
            BLOCK_M=NORM_BLOCK_M,
            BLOCK_K=NORM_BLOCK_K,
            num_warps=NUM_WARPS,
            enable_fp_fusion=FP_FUSION,
        )
    return lengths
