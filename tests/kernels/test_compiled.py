"""What the compiler makes of the kernels for GPUs that need not be here."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT

Case = dict[str, Any]


@pytest.fixture(scope="module")
def compiled() -> list[Case]:
    """Every case of benchmarks/kernel_resources.py, compiled outside the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_resources.py"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def name(case: Case) -> str:
    kind = f"{case['kernel']} {case['dtype']} {case['norm']} d{case['d']} Hk{case['kv_heads']}"
    kind += f" R{case['rotary']} {'interleaved ' if case['interleaved'] else ''}x{case['together']}"
    return f"sm_{case['target']} {kind} {case['tile']}"


def projecting(compiled: list[Case]) -> list[Case]:
    return [case for case in compiled if case["kernel"] == "project"]


def combining(compiled: list[Case]) -> list[Case]:
    return [case for case in compiled if case["kernel"] == "combine"]


def test_every_target_dtype_and_norm_is_there(compiled: list[Case]) -> None:
    found = {(c["target"], c["dtype"], c["norm"]) for c in projecting(compiled) if c["d"] == 768}
    assert found == {
        (target, dtype, norm)
        for target in (80, 90, 100)
        for dtype in ("fp32", "bf16", "fp16")
        for norm in ("none", "layernorm", "rmsnorm")
    }
    plain = [c for c in combining(compiled) if not c["rotary"]]
    combined = {(c["target"], c["dtype"], c["d"], c["norm"]) for c in plain}
    assert combined == {
        (target, dtype, d, norm)
        for target in (80, 90, 100)
        for dtype in ("fp32", "bf16", "fp16")
        for d in (64, 100, 768, 4096)
        for norm in ("none", "layernorm")
    }
    for kernel in ("combine", "finish"):
        turning = {
            (c["target"], c["dtype"], c["head_dim"], c["rotary"], c["interleaved"])
            for c in compiled
            if c["kernel"] == kernel and c["rotary"]
        }
        assert turning == {
            (target, dtype, *heads)
            for target in (80, 90, 100)
            for dtype in ("fp32", "bf16", "fp16")
            for heads in (
                (64, 64, False), (80, 32, False), (256, 256, False), (7, 6, False),
                (128, 128, False), (128, 128, True),
            )
        }  # fmt: skip
    for kernel in ("project", "finish", "embed", "combine", "lengths"):
        odd = [c for c in compiled if c["kernel"] == kernel and c["d"] == 100]
        assert {c["target"] for c in odd} == {80, 90, 100}


def test_nothing_spills_and_the_stack_is_empty(compiled: list[Case]) -> None:
    assert [name(case) for case in compiled if case["spills"] or case["stack"]] == []


def test_no_offset_is_multiplied_in_32_bits(compiled: list[Case]) -> None:
    assert [name(c) for c in compiled if c["narrow_products"]] == []


def test_loads_are_asynchronous_where_there_is_more_than_one_step(compiled: list[Case]) -> None:
    steps = [c for c in projecting(compiled) if c["d"] > c["tile"]["block_k"]]
    assert [name(c) for c in steps if not c["cp_async"]] == []


def test_float32_is_summed_in_parts(compiled: list[Case]) -> None:
    for case in projecting(compiled):
        if case["dtype"] == "fp32" and case["precision"] == "ieee":
            tile = case["tile"]
            sums = tile["block_m"] * tile["block_n"] // (32 * tile["num_warps"])
            # One addition of a partial sum and one of the bias for each value of a thread.
            assert case["float_adds"] >= 2 * sums, name(case)


def test_aligned_widths_store_16_bytes_at_once(compiled: list[Case]) -> None:
    storing = [c for c in compiled if c["kernel"] in ("project", "embed", "combine")]
    aligned = [c for c in storing if c["d"] == 768]
    assert [name(c) for c in aligned if not c["wide_stores"]] == []


def test_combining_loads_and_stores_16_bytes_and_nothing_less(compiled: list[Case]) -> None:
    aligned = [c for c in combining(compiled) if c["d"] != 100]
    assert aligned
    assert [name(c) for c in aligned if not c["wide_loads"] or not c["wide_stores"]] == []
    assert [name(c) for c in aligned if c["narrow_loads"] or c["narrow_stores"]] == []
    # A, its partner, cos and sin, 2 loads each; interleaved partners are taken one by one.
    halves = [c for c in aligned if c["rotary"] and not c["interleaved"]]
    assert [name(c) for c in halves if c["wide_loads"] < 8] == []
    odd = [c for c in combining(compiled) if c["d"] == 100]
    assert [name(c) for c in odd if not c["narrow_loads"] or not c["narrow_stores"]] == []
    lengths = [c for c in compiled if c["kernel"] == "lengths"]
    assert [name(c) for c in lengths if not c["wide_loads"]] == []


def test_the_caches_keep_a_and_not_the_outputs(compiled: list[Case]) -> None:
    assert [name(c) for c in combining(compiled) if not c["kept_loads"]] == []
    assert [name(c) for c in combining(compiled) if not c["streamed_stores"]] == []


def test_a_sum_is_not_fused_with_a_product_in_combining(compiled: list[Case]) -> None:
    assert [name(c) for c in combining(compiled) if c["fused"]] == []


def test_each_target_multiplies_on_its_own_tensor_cores(compiled: list[Case]) -> None:
    instruction = {80: "mma", 90: "wgmma", 100: "tcgen05"}
    halves = [c for c in projecting(compiled) if c["dtype"] != "fp32" or c["precision"] == "tf32"]
    assert [name(c) for c in halves if not c[instruction[c["target"]]]] == []


def test_float32_is_not_multiplied_on_tensor_cores_unless_tf32_is_asked_for(
    compiled: list[Case],
) -> None:
    exact = [c for c in projecting(compiled) if c["dtype"] == "fp32" and c["precision"] == "ieee"]
    assert exact
    assert [name(c) for c in exact if c["mma"] or c["wgmma"] or c["tcgen05"]] == []


def test_shared_memory_fits_the_gpus_that_get_the_tile(compiled: list[Case]) -> None:
    limits = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
    assert [name(c) for c in compiled if c["shared"] > limits[c["target"]]] == []
    small = [c for c in compiled if c["d"] == 768 and c["tile"]["block_m"] == 64]
    assert [name(c) for c in small if c["shared"] > 99 << 10] == []


LAUNCH = """
import torch, triton
from dataclasses import replace
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from kernels import combine_triton, direct_triton
from kernels.layer import seeded_layer
from kernels.packed import pack
from kernels.tables import build

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

launched = []

def launch(self, grid):
    def warm(*a, **k):
        launched.append((self.fn.__name__, grid, self.warmup(*a, grid=grid, **k)))
    return warm

triton.runtime.driver.set_active(Driver())
JITFunction.__getitem__ = launch
for length, dtype in ((16, torch.float16), (1, torch.float16), (63, torch.float32)):
    layer = seeded_layer(vocabulary_size=50, d_model=96, heads=6, kv_heads=2,
                         context_length=length, positions="sinusoidal", seed=0).to(dtype)
    packed = pack(layer, torch.device("cpu"))
    narrow = {n: getattr(packed, n).to(dtype) for n in ("weight", "bias", "position")}
    ids = torch.zeros(3, length, dtype=torch.int32)
    out = [torch.empty(3, heads, length, 16, dtype=dtype) for heads in (6, 2, 2)]
    direct_triton.project(replace(packed, **narrow), ids, *out)
    direct_triton.embed(replace(packed, **narrow), ids, torch.empty(3, length, 96, dtype=dtype))
    tables = build(layer, torch.zeros(1, dtype=torch.int32), torch.device("cpu"))
    combine_triton.combine(tables, ids, *out)
for name, grid, kernel in launched:
    print(name, *grid, kernel.metadata.enable_fp_fusion, "wgmma" in kernel.asm["ptx"])
"""


def test_a_launch_goes_through_triton_up_to_the_gpu_itself() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LAUNCH]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The grids: tokens over the rows of a tile, times 160 or 96 columns over its columns; combining
    # takes the tokens of one of two segments, which holds two of the three windows.
    assert done.stdout.splitlines() == [
        "project_kernel 2 True True",
        "embed_kernel 3 True False",
        "combine_kernel 6 False False",
        "project_kernel 2 True True",
        "embed_kernel 1 True False",
        "combine_kernel 3 False False",
        "project_kernel 6 True False",
        "embed_kernel 12 True False",
        "combine_kernel 24 False False",
    ]
