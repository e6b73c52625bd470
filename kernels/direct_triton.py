"""Method `direct` on a GPU: one launch gathers, adds positions, normalises, projects and stores.

A program owns BLOCK_M tokens and BLOCK_N of the F output columns. Where there is a norm it first
walks over d once for the statistics (mean and squared deviations, merged block by block after Chan,
Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
1979, which keeps rows with a large mean exact), then walks over d again for the product; the
second walk finds its rows of E in the L2 cache. x never reaches global memory.

float32 products are exact, and summed in partial sums of BLOCK_K: a GPU sums a dot of float32 one
product after the other, and over all of d that chain would lose more than blocked sums do.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import DeviceError
from kernels.finish_triton import finish
from kernels.packed import PackedLayer
from kernels.triton_common import current, or_unused, store_qkv

NO_NORM = tl.constexpr(0)
LAYERNORM = tl.constexpr(1)
RMSNORM = tl.constexpr(2)
NORMS = {"none": 0, "layernorm": 1, "rmsnorm": 2}

EMBED_BLOCK_M, EMBED_BLOCK_K = 16, 128
FP_FUSION = True  # said aloud, since Triton 3.10 changes its default
GROUP = 8  # blocks of tokens that share the columns of W while both are in the L2 cache


@dataclass(frozen=True)
class Tile:
    """The shape of one program and how it is compiled; part of what decides the bits."""

    block_m: int  # tokens
    block_n: int  # columns of F
    block_k: int  # columns of d
    num_warps: int
    num_stages: int


HALF_TILE = Tile(128, 128, 64, 8, 3)
SMALL_TILE = Tile(64, 128, 32, 4, 3)
FLOAT_TILE = Tile(64, 128, 32, 8, 2)
ODD_TILE = Tile(64, 64, 32, 8, 2)  # for unaligned rows, whose many addresses would spill otherwise
HALF_TILE_SHARED_MEMORY = 160 << 10  # bytes a block may take: sm_80, sm_90 and sm_100 have them


@triton.jit
def _load_x(
    rows_e,  # pointers to E's rows [BLOCK_M]
    rows_p,  # pointers to P's rows [BLOCK_M]
    columns,  # [BLOCK_K]
    scale,
    D: tl.constexpr,
    EVEN_D: tl.constexpr,
    HAS_POSITION: tl.constexpr,
):
    """s * E[t] + P[p] for some columns, float32 [BLOCK_M, BLOCK_K]; zero beyond d."""
    if EVEN_D:
        x = tl.load(rows_e[:, None] + columns[None, :]).to(tl.float32) * scale
        if HAS_POSITION:
            x += tl.load(rows_p[:, None] + columns[None, :]).to(tl.float32)
    else:
        inside = (columns < D)[None, :]
        x = tl.load(rows_e[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        x = x * scale
        if HAS_POSITION:
            p = tl.load(rows_p[:, None] + columns[None, :], mask=inside, other=0.0)
            x += p.to(tl.float32)
    return x


@triton.jit(do_not_specialize=["N"])
def project_kernel(
    ids,  # int32 [N], N = W*T
    e,  # [V, D]
    p,  # [T, D]
    norm_weight,  # [D]
    norm_bias,  # [D]
    w,  # [F, D]
    b,  # [F]
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
    N,
    T,
    scale,
    eps,
    D: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    KV_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    HAS_NORM_WEIGHT: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    F: tl.constexpr = Q_WIDTH + 2 * KV_WIDTH
    EVEN_D: tl.constexpr = D % BLOCK_K == 0
    EVEN_F: tl.constexpr = F % BLOCK_N == 0
    PARTIAL_SUMS: tl.constexpr = (w.dtype.element_ty == tl.float32) and (PRECISION == "ieee")

    # Programs go down GROUP blocks of tokens before they move to the next columns of W.
    program = tl.program_id(0)
    blocks_m = tl.cdiv(N, BLOCK_M)
    blocks_n: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    first_m = (program // (GROUP * blocks_n)) * GROUP
    group = min(blocks_m - first_m, GROUP)
    inside_group = program % (GROUP * blocks_n)
    block_m = first_m + inside_group % group
    first_column = (inside_group // group) * BLOCK_N

    rows = block_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < N
    token = tl.load(ids + rows, mask=row_mask, other=0).to(tl.int64)
    window = rows // T
    position = rows % T
    rows_e = e + token * D
    rows_p = p + position * D
    columns = first_column + tl.arange(0, BLOCK_N)
    block_k = tl.arange(0, BLOCK_K)

    if NORM == LAYERNORM:
        # Statistics are taken of x - pivot, so that a large mean costs the running one no bits.
        x = _load_x(rows_e, rows_p, block_k, scale, D, EVEN_D, HAS_POSITION)
        pivot = tl.sum(x, 1) / min(BLOCK_K, D)
    if NORM != NO_NORM:
        mean = tl.zeros((BLOCK_M,), tl.float32)
        squares = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(0, D, BLOCK_K):
            ks = start + block_k
            x = _load_x(rows_e, rows_p, ks, scale, D, EVEN_D, HAS_POSITION)
            if NORM == LAYERNORM:
                x -= pivot[:, None]
                if not EVEN_D:
                    x = tl.where((ks < D)[None, :], x, 0.0)
                count = min(BLOCK_K, D - start)
                block_mean = tl.sum(x, 1) / count
                deviation = x - block_mean[:, None]
                if not EVEN_D:
                    deviation = tl.where((ks < D)[None, :], deviation, 0.0)
                delta = block_mean - mean
                seen = start + count
                mean += delta * (count / seen)
                squares += tl.sum(deviation * deviation, 1)
                squares += delta * delta * (start * (count / seen))
            else:
                squares += tl.sum(x * x, 1)
        # Rounded to nearest: rsqrt and plain division are approximations on a GPU.
        rescale = tl.div_rn(1.0, tl.sqrt_rn(squares * (1.0 / D) + eps))

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    columns_w = w + columns.to(tl.int64) * D
    for start in range(0, D, BLOCK_K):
        ks = start + block_k
        x = _load_x(rows_e, rows_p, ks, scale, D, EVEN_D, HAS_POSITION)
        if NORM == LAYERNORM:
            x = (x - pivot[:, None]) - mean[:, None]
        if NORM != NO_NORM:
            x *= rescale[:, None]
            if HAS_NORM_WEIGHT:
                gamma = tl.load(norm_weight + ks, mask=ks < D, other=0.0)
                x *= gamma.to(tl.float32)[None, :]
            if HAS_NORM_BIAS:
                beta = tl.load(norm_bias + ks, mask=ks < D, other=0.0)
                x += beta.to(tl.float32)[None, :]
        if EVEN_D and EVEN_F:
            weights = tl.load(columns_w[None, :] + ks[:, None])
        else:
            inside = (ks < D)[:, None] & (columns < F)[None, :]
            weights = tl.load(columns_w[None, :] + ks[:, None], mask=inside, other=0.0)
        z = x.to(w.dtype.element_ty)
        if PARTIAL_SUMS:
            # A bound on imprecise sums keeps the compiler from fusing this addition into the dot.
            accumulator += tl.dot(
                z, weights, input_precision=PRECISION, max_num_imprecise_acc=BLOCK_K
            )
        else:
            accumulator = tl.dot(z, weights, accumulator, input_precision=PRECISION)

    if HAS_BIAS:
        bias = tl.load(b + columns, mask=columns < F, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]

    store_qkv(
        q, q_stride_w, q_stride_h, q_stride_t, k, k_stride_w, k_stride_h, k_stride_t,
        v, v_stride_w, v_stride_h, v_stride_t, accumulator, columns, first_column,
        window, position, row_mask, Q_WIDTH, KV_WIDTH, HEAD_DIM, BLOCK_N, "",
    )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def embed_kernel(
    ids,  # int32 [N], N = W*T
    e,  # [V, D]
    p,  # [T, D]
    out,  # [N, D]
    N,
    T,
    scale,
    D: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks_k: tl.constexpr = (D + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    rows = (program // blocks_k).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ks = (program % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    row_mask = rows < N
    token = tl.load(ids + rows, mask=row_mask, other=0).to(tl.int64)
    EVEN_D: tl.constexpr = D % BLOCK_K == 0
    x = _load_x(e + token * D, p + (rows % T) * D, ks, scale, D, EVEN_D, HAS_POSITION)
    tl.store(
        out + rows[:, None] * D + ks[None, :],
        x.to(out.dtype.element_ty),
        mask=row_mask[:, None] & (ks < D)[None, :],
    )


def choose_tile(dtype: torch.dtype, d: int, head_dim: int, shared_memory: int) -> Tile:
    """The tile for some widths on a GPU whose blocks may take `shared_memory` bytes."""
    if d % 16 or head_dim % 16:
        return ODD_TILE
    if dtype == torch.float32:
        return FLOAT_TILE
    return HALF_TILE if shared_memory >= HALF_TILE_SHARED_MEMORY else SMALL_TILE


def project(
    layer: PackedLayer, ids: Tensor, q: Tensor, k: Tensor, v: Tensor, *, tf32: bool = False
) -> None:
    """Write q [W, H, T, Dh], k and v [W, Hk, T, Dh] for ids [W, T] int32.

    One launch, and two small ones where q and k are normalised or turned after it.

    Products are accumulated in float32. The outputs may have any strides for W, H and T; their
    last dimension must be contiguous. Ids must lie in [0, V): they are not checked here.

    Raises:
        ValueError: if the outputs are of other strides, or windows longer than the positions.
        DeviceError: if bfloat16 is asked of Triton's interpreter, which computes it wrongly.
    """
    if any(tensor.stride(3) != 1 for tensor in (q, k, v)):
        raise ValueError("the last dimension of q, k and v must be contiguous")
    if ids.numel() == 0:
        return
    _check_ids(layer, ids)
    ids = ids.contiguous()
    total_width, d = layer.weight.shape
    tile = tile_for(layer)
    blocks = triton.cdiv(ids.numel(), tile.block_m) * triton.cdiv(total_width, tile.block_n)
    with current(ids.device):
        project_kernel[(blocks,)](
            ids,
            layer.embedding,
            or_unused(layer.position, layer.embedding),
            or_unused(layer.norm_weight, layer.embedding),
            or_unused(layer.norm_bias, layer.embedding),
            layer.weight,
            or_unused(layer.bias, layer.weight),
            q,
            k,
            v,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            ids.numel(),
            ids.shape[1],
            layer.embedding_scale,
            layer.eps,
            D=d,
            Q_WIDTH=layer.heads * layer.head_dim,
            KV_WIDTH=layer.kv_heads * layer.head_dim,
            HEAD_DIM=layer.head_dim,
            NORM=NORMS[layer.norm],
            HAS_POSITION=layer.position is not None,
            HAS_NORM_WEIGHT=layer.norm_weight is not None,
            HAS_NORM_BIAS=layer.norm_bias is not None,
            HAS_BIAS=layer.bias is not None,
            PRECISION="tf32" if tf32 else "ieee",
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            GROUP=GROUP,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=FP_FUSION,
        )
    finish(layer, q, k)


def embed(layer: PackedLayer, ids: Tensor, out: Tensor) -> None:
    """Write x = s * E[t] + P[p] for ids [W, T] int32 into out [W, T, d], contiguous.

    Raises:
        ValueError, DeviceError: as `project`.
    """
    if not out.is_contiguous():
        raise ValueError("x must be contiguous")
    if ids.numel() == 0:
        return
    _check_ids(layer, ids)
    ids = ids.contiguous()
    d = layer.embedding.shape[1]
    blocks = triton.cdiv(ids.numel(), EMBED_BLOCK_M) * triton.cdiv(d, EMBED_BLOCK_K)
    with current(ids.device):
        embed_kernel[(blocks,)](
            ids,
            layer.embedding,
            or_unused(layer.position, layer.embedding),
            out,
            ids.numel(),
            ids.shape[1],
            layer.embedding_scale,
            D=d,
            HAS_POSITION=layer.position is not None,
            BLOCK_M=EMBED_BLOCK_M,
            BLOCK_K=EMBED_BLOCK_K,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )


def tile_for(layer: PackedLayer) -> Tile:
    """The tile that projects a layer on the device that holds it."""
    shared_memory = shared_memory_per_block(layer.weight.device)
    return choose_tile(layer.weight.dtype, layer.weight.shape[1], layer.head_dim, shared_memory)


def shared_memory_per_block(device: torch.device) -> int:
    """Bytes of shared memory that one block may take; the interpreter has no limit."""
    if device.type == "cpu":
        return HALF_TILE_SHARED_MEMORY
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return int(properties["max_shared_mem"])


def _check_ids(layer: PackedLayer, ids: Tensor) -> None:
    """Raise where a kernel would read beyond P, or the interpreter compute nonsense."""
    place = layer.position if layer.rotary is None else layer.rotary.cos
    if place is not None and ids.shape[1] > len(place):
        raise ValueError(f"{ids.shape[1]} tokens a window, but {len(place)} positions")
    if ids.device.type == "cpu" and layer.embedding.dtype == torch.bfloat16:
        raise DeviceError("Triton's interpreter computes bfloat16 wrongly; use float32 or float16")
