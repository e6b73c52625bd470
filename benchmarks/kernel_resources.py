"""What the compiler makes of the kernels, for GPUs that need not be here.

    python benchmarks/kernel_resources.py [--json]

Compiles the projecting kernel with the tiles that a job uses, for sm_80, sm_90 and sm_100, and
prints registers, stack, spills and the instructions that matter. Needs Triton on Linux and no GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.direct_triton import (
    GROUP,
    HALF_TILE_SHARED_MEMORY,
    NORMS,
    Tile,
    choose_tile,
    project_kernel,
)

TARGETS = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_SHARED_MEMORY = 99 << 10  # bytes that a block may take on sm_86, sm_89 and sm_120
PARAMETERS = ("e", "p", "norm_weight", "norm_bias", "w", "b", "q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel to compile."""

    target: int
    dtype: str
    norm: str
    d: int
    heads: int
    kv_heads: int
    head_dim: int
    tile: Tile
    precision: str = "ieee"


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
    wide_stores: int  # of 16 bytes
    wide_products: int  # offsets multiplied in 64 bits


def cases() -> list[Case]:
    """Every dtype and norm with its tile on every target, then widths that divide by nothing."""
    widths = {"d": 768, "heads": 12, "kv_heads": 12, "head_dim": 64}
    odd = {"d": 100, "heads": 5, "kv_heads": 5, "head_dim": 7}

    def case(
        target: int, dtype: str, norm: str, shape: dict[str, int],
        shared: int = HALF_TILE_SHARED_MEMORY, precision: str = "ieee",
    ) -> Case:  # fmt: skip
        tile = choose_tile(DTYPES[dtype], shape["d"], shape["head_dim"], shared)
        return Case(
            target=target, dtype=dtype, norm=norm, tile=tile, precision=precision, **shape
        )  # fmt: skip

    found = []
    for target in TARGETS:
        for dtype in DTYPES:
            found += [case(target, dtype, norm, widths) for norm in NORMS]
            found.append(case(target, dtype, "layernorm", odd))
        found.append(case(target, "bf16", "layernorm", widths, shared=SMALL_SHARED_MEMORY))
        found.append(case(target, "fp32", "none", widths, precision="tf32"))
    return found


def compile_case(case: Case) -> Resources:
    """Compile one case to machine code and read what it takes."""
    constants: dict[str, Any] = {
        "D": case.d, "Q_WIDTH": case.heads * case.head_dim,
        "KV_WIDTH": case.kv_heads * case.head_dim, "HEAD_DIM": case.head_dim,
        "NORM": NORMS[case.norm], "HAS_POSITION": True, "HAS_NORM_WEIGHT": case.norm != "none",
        "HAS_NORM_BIAS": case.norm == "layernorm", "HAS_BIAS": True, "PRECISION": case.precision,
        "BLOCK_M": case.tile.block_m, "BLOCK_N": case.tile.block_n, "BLOCK_K": case.tile.block_k,
        "GROUP": GROUP,
    }  # fmt: skip
    signature = {}
    for name in project_kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "ids":
            signature[name] = "*i32"
        elif name in PARAMETERS:
            signature[name] = f"*{case.dtype}"
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
    # Torch's allocations are aligned; strides and counts divide by 16 where the widths do.
    even = case.d % 16 == 0 and case.head_dim % 16 == 0
    aligned = [
        place
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (even and "stride" in name)
    ]
    source = ASTSource(
        project_kernel,
        signature=signature,
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": case.tile.num_warps, "num_stages": case.tile.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", case.target, 32), options=options)
    ptx = compiled.asm["ptx"]
    usage = resource_usage(compiled.asm["cubin"])
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=ptx.count("ld.local") + ptx.count("st.local") + usage["LOCAL"],
        shared=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        tcgen05=ptx.count("tcgen05.mma"),
        mma=ptx.count("mma.sync"),
        cp_async=ptx.count("cp.async.c"),
        wide_stores=len(re.findall(r"st\.global\.v(?:4\.b32|2\.b64)", ptx)),
        wide_products=len(re.findall(r"mul\.wide|mul\.lo\.s64|mad\.wide|mad\.lo\.s64", ptx)),
    )


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
    for case in cases():
        resources = compile_case(case)
        if arguments.json:
            print(json.dumps({**asdict(case), **asdict(resources)}), flush=True)
            continue
        tile = f"{case.tile.block_m}x{case.tile.block_n}x{case.tile.block_k}"
        values = " ".join(f"{name} {value}" for name, value in asdict(resources).items())
        name = f"sm_{case.target} {case.dtype} {case.precision} {case.norm} d{case.d} {tile}"
        print(f"{name:48} {values}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
