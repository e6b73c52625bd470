"""What the compiler makes of the kernels, for GPUs that need not be here.

    python benchmarks/kernel_resources.py [--json]

Compiles the kernels with the tiles that a job uses, for sm_80, sm_90 and sm_100, and
prints registers, stack, spills and the instructions that matter. Needs Triton on Linux and no GPU.
"""

import argparse
import json
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import combine_triton, finish_triton
from kernels.direct_triton import (
    EMBED_BLOCK_K,
    EMBED_BLOCK_M,
    FP_FUSION,
    GROUP,
    HALF_TILE_SHARED_MEMORY,
    NORMS,
    Tile,
    choose_tile,
    embed_kernel,
    project_kernel,
)

TARGETS = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_SHARED_MEMORY = 99 << 10  # bytes that a block may take on sm_86, sm_89 and sm_120
Pointers = dict[str, str]  # argument -> dtype of what it points to


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel to compile."""

    kernel: str  # "project", "finish", "embed", "combine" or "lengths"
    target: int
    dtype: str
    norm: str
    d: int
    heads: int
    kv_heads: int
    head_dim: int
    tile: Tile
    precision: str
    ones: bool  # a window of one token: arguments that are 1 become constants
    rotary: int = 0  # values of a head that turn
    interleaved: bool = False
    together: int = 1  # heads that are normalised together


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What became of it."""

    registers: int
    stack: int  # bytes
    spills: int  # loads and stores of local memory
    shared: int  # bytes
    wgmma: int
    tcgen05: int
    mma: int
    cp_async: int
    wide_loads: int  # of 16 bytes
    narrow_loads: int  # of floats, less than 16 bytes at once
    wide_stores: int
    narrow_stores: int
    kept_loads: int  # of what the caches are to keep
    streamed_stores: int  # past the caches
    float_adds: int  # of float32, partial sums among them
    fused: int  # multiply-adds of float32
    narrow_products: int  # tensors of offsets that are multiplied in 32 bits


def cases() -> list[Case]:
    """Every dtype and norm with its tile on every target, then the odd cases."""
    even = {"d": 768, "heads": 12, "kv_heads": 12, "head_dim": 64}
    grouped = {**even, "kv_heads": 4}
    small = {"d": 64, "heads": 4, "kv_heads": 4, "head_dim": 16}
    odd = {"d": 100, "heads": 5, "kv_heads": 5, "head_dim": 7}
    wide = {"d": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128}
    partial = {"d": 2560, "heads": 32, "kv_heads": 32, "head_dim": 80}
    broad = {"d": 2048, "heads": 8, "kv_heads": 1, "head_dim": 256}

    def case(
        target: int, dtype: str, norm: str, widths: dict[str, int], *, kernel: str = "project",
        shared: int = HALF_TILE_SHARED_MEMORY, precision: str = "ieee", ones: bool = False,
        **turning: Any,
    ) -> Case:  # fmt: skip
        tile = choose_tile(DTYPES[dtype], widths["d"], widths["head_dim"], shared)
        return Case(
            kernel=kernel, target=target, dtype=dtype, norm=norm, tile=tile, precision=precision,
            ones=ones, **widths, **turning,
        )  # fmt: skip

    found = []
    for target in TARGETS:
        for dtype in DTYPES:
            for norm in NORMS:
                found += [case(target, dtype, norm, widths) for widths in (even, grouped)]
            found += [case(target, dtype, norm, small) for norm in ("none", "layernorm")]
            found.append(case(target, dtype, "layernorm", odd))
            found.append(case(target, dtype, "none", even, kernel="embed"))
            for widths in (even, grouped, small, wide, odd):
                for norm in ("none", "layernorm"):
                    found.append(case(target, dtype, norm, widths, kernel="combine"))
            for widths, rotary in ((even, 64), (wide, 128), (partial, 32), (broad, 256), (odd, 6)):
                found += [
                    case(target, dtype, "none", widths, kernel="combine", rotary=rotary),
                    case(target, dtype, "rmsnorm", widths, kernel="finish", rotary=rotary),
                ]
            found += [
                case(target, dtype, "none", wide, kernel=kernel, rotary=128, interleaved=True)
                for kernel in ("combine", "finish")
            ]
            found.append(case(target, dtype, "rmsnorm", wide, kernel="finish", together=32))
        found += [case(target, "fp32", norm, even, precision="tf32") for norm in NORMS]
        found += [case(target, "fp32", "layernorm", w, kernel="lengths") for w in (even, wide, odd)]
        found.append(case(target, "fp32", "none", odd, ones=True))
        found.append(case(target, "fp32", "none", odd, kernel="embed", ones=True))
        found.append(case(target, "fp32", "rmsnorm", odd, kernel="finish", ones=True))
        found.append(case(target, "bf16", "layernorm", even, shared=SMALL_SHARED_MEMORY))
    return found


def compile_case(case: Case) -> Resources:
    """Compile one case to machine code and read what it takes."""
    builders = {
        "project": _project, "finish": _finish, "embed": _embed, "combine": _combine,
        "lengths": _lengths,
    }  # fmt: skip
    kernel, constants, pointers = builders[case.kernel](case)
    if case.ones:
        constants["T"] = 1
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
    # Torch's allocations are aligned; strides divide by 16 where the widths do.
    even = case.d % 16 == 0 and case.head_dim % 16 == 0
    aligned = [
        place
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (even and "stride" in name)
    ]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    fused = {"finish": finish_triton.FP_FUSION}
    fused |= dict.fromkeys(("combine", "lengths"), combine_triton.FP_FUSION)
    options = {
        "num_warps": case.tile.num_warps if case.kernel == "project" else 4,
        "num_stages": case.tile.num_stages,
        "enable_fp_fusion": fused.get(case.kernel, FP_FUSION),
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", case.target, 32), options=options)
    ptx = compiled.asm["ptx"]
    usage = resource_usage(compiled.asm["cubin"])
    wide = re.compile(r"\.v4\.b32|\.v2\.b64|\.v8\.b16")
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=ptx.count("ld.local") + ptx.count("st.local") + usage["LOCAL"],
        shared=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        tcgen05=ptx.count("tcgen05.mma"),
        mma=ptx.count("mma.sync"),
        cp_async=ptx.count("cp.async.c"),
        wide_loads=len(wide.findall("\n".join(re.findall(r"ld\.global.*", ptx)))),
        narrow_loads=len(re.findall(r"ld\.global\.L1::evict_last\S*?(?<!\.v4)\.b32", ptx)),
        wide_stores=len(wide.findall("\n".join(re.findall(r"st\.global.*", ptx)))),
        narrow_stores=len(re.findall(r"st\.global(?:\.cs)?(?:\.v2)?\.b(?:16|32)", ptx)),
        kept_loads=ptx.count("ld.global.L1::evict_last"),
        streamed_stores=ptx.count("st.global.cs"),
        float_adds=sum(1 + (x2 == "x2") for x2 in re.findall(r"add(?:\.rn)?\.f32(x2)?", ptx)),
        fused=len(re.findall(r"fma\.rn\.f32", ptx)),
        narrow_products=len(re.findall(r"arith\.muli .*tensor<[0-9x]+xi32>", compiled.asm["ttir"])),
    )


def _project(case: Case) -> tuple[Any, dict[str, Any], Pointers]:
    names = ("e", "p", "w", "b", "q", "k", "v")
    return project_kernel, {
        "D": case.d, "Q_WIDTH": case.heads * case.head_dim,
        "KV_WIDTH": case.kv_heads * case.head_dim, "HEAD_DIM": case.head_dim,
        "NORM": NORMS[case.norm], "HAS_POSITION": True, "HAS_NORM_WEIGHT": case.norm != "none",
        "HAS_NORM_BIAS": case.norm == "layernorm", "HAS_BIAS": True, "PRECISION": case.precision,
        "BLOCK_M": case.tile.block_m, "BLOCK_N": case.tile.block_n, "BLOCK_K": case.tile.block_k,
        "GROUP": GROUP,
    }, {"ids": "i32", "norm_weight": "fp32", "norm_bias": "fp32"} | dict.fromkeys(
        names, case.dtype
    )  # fmt: skip


def _embed(case: Case) -> tuple[Any, dict[str, Any], Pointers]:
    return embed_kernel, {
        "D": case.d, "HAS_POSITION": True, "BLOCK_M": EMBED_BLOCK_M, "BLOCK_K": EMBED_BLOCK_K
    }, {"ids": "i32"} | dict.fromkeys(("e", "p", "out"), case.dtype)  # fmt: skip


def _combine(case: Case) -> tuple[Any, dict[str, Any], Pointers]:
    tables = dict.fromkeys(("a", "b", "scale", "c", "cos", "sin"), "fp32")
    return combine_triton.combine_kernel, {
        "Q_WIDTH": case.heads * case.head_dim, "KV_WIDTH": case.kv_heads * case.head_dim,
        "HEAD_DIM": case.head_dim, "HAS_POSITION": case.rotary == 0,
        "HAS_NORM": case.norm != "none", "PAIRS": case.rotary // 2,
        "INTERLEAVED": case.interleaved,
        "BLOCK_M": combine_triton.tokens_per_program(case.head_dim),
        "BLOCK_N": combine_triton.BLOCK_N, "SEGMENTS": combine_triton.MOST_SEGMENTS,
    }, {"rows": "i32"} | tables | dict.fromkeys("qkv", case.dtype)  # fmt: skip


def _finish(case: Case) -> tuple[Any, dict[str, Any], Pointers]:
    return finish_triton.finish_kernel, {
        "HEADS_TOGETHER": case.together, "HEAD_DIM": case.head_dim,
        "NORM_WIDTH": case.together * case.head_dim, "HAS_NORM": case.norm != "none",
        "PAIRS": case.rotary // 2, "INTERLEAVED": case.interleaved,
        "BLOCK_M": finish_triton.BLOCK_M,
        "BLOCK_D": triton.next_power_of_2((case.head_dim + 1) // 2),
    }, {"out": case.dtype} | dict.fromkeys(("norm", "cos", "sin"), "fp32")  # fmt: skip


def _lengths(case: Case) -> tuple[Any, dict[str, Any], Pointers]:
    return combine_triton.lengths_kernel, {
        "D": case.d, "BLOCK_M": combine_triton.NORM_BLOCK_M,
        "BLOCK_K": combine_triton.NORM_BLOCK_K, "HAS_MEANS": case.norm == "layernorm",
    }, {"rows": "i32"} | dict.fromkeys(("e", "p", "means", "out"), "fp32")  # fmt: skip


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK and LOCAL of the one kernel in a cubin, by the cuobjdump that Triton carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    arguments = parser.parse_args()
    found = cases()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        compiled = zip(found, pool.map(compile_case, found, chunksize=8), strict=True)
        for case, resources in compiled:
            show(case, resources, as_json=arguments.json)


def show(case: Case, resources: Resources, *, as_json: bool) -> None:
    """Print one case on a line."""
    if as_json:
        print(json.dumps({**asdict(case), **asdict(resources)}), flush=True)
        return
    tile = f"{case.tile.block_m}x{case.tile.block_n}x{case.tile.block_k}"
    values = " ".join(f"{name} {value}" for name, value in asdict(resources).items())
    kind = f"{case.dtype} {case.precision} {case.norm} d{case.d} Hk{case.kv_heads}"
    turning = f" R{case.rotary}{'i' if case.interleaved else ''} x{case.together}"
    name = f"sm_{case.target} {case.kernel} {kind} {tile}{turning}{' T1' if case.ones else ''}"
    print(f"{name:58} {values}", flush=True)


if __name__ == "__main__":
    main()
