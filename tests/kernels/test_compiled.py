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
    kind = f"{case['kernel']} {case['dtype']} {case['norm']} d{case['d']}"
    return f"sm_{case['target']} {kind} {case['tile']}"


def projecting(compiled: list[Case]) -> list[Case]:
    return [case for case in compiled if case["kernel"] == "project"]


def test_every_target_dtype_and_norm_is_there(compiled: list[Case]) -> None:
    found = {(c["target"], c["dtype"], c["norm"]) for c in projecting(compiled) if c["d"] == 768}
    assert found == {
        (target, dtype, norm)
        for target in (80, 90, 100)
        for dtype in ("fp32", "bf16", "fp16")
        for norm in ("none", "layernorm", "rmsnorm")
    }
    for kernel in ("project", "embed"):
        odd = [c for c in compiled if c["kernel"] == kernel and c["d"] == 100]
        assert {c["target"] for c in odd} == {80, 90, 100}


def test_nothing_spills_and_the_stack_is_empty(compiled: list[Case]) -> None:
    assert [name(case) for case in compiled if case["spills"] or case["stack"]] == []


def test_loads_are_asynchronous_and_offsets_have_64_bits(compiled: list[Case]) -> None:
    assert [name(c) for c in compiled if not c["wide_products"]] == []
    assert [name(c) for c in projecting(compiled) if not c["cp_async"]] == []


def test_aligned_widths_store_16_bytes_at_once(compiled: list[Case]) -> None:
    assert [name(c) for c in compiled if c["d"] == 768 and not c["wide_stores"]] == []


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
