"""Chooses once which device and which kernels compute, and returns the choice with its reason."""

import importlib.util
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import combine, direct
from kernels.errors import DeviceError
from kernels.method import Method
from kernels.names import DEVICE_NAMES
from kernels.packed import PackedLayer
from kernels.tables import BUILD_ROWS, Tables

CPU_SETTINGS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
)
"""What in the environment decides which code of MKL and oneDNN runs."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where everything of one job is computed, and by which kernels."""

    device: torch.device
    kernel: str  # "triton" or "torch-cpu"
    precision: str  # how float32 products of method direct are formed: "ieee" or "tf32"
    reason: str
    embed: Callable[[PackedLayer, Tensor, Tensor], None]
    project: Callable[..., None]  # PackedLayer, ids, q, k, v
    combine: Callable[..., None]  # Tables, rows, q, k, v; the CPU takes any of the three alone
    combined_by: Callable[[Tables, torch.dtype], tuple[str, str]]  # which body of it, and why
    place: dict[str, Any]  # what of the machine decides the bits
    direct_shape: Callable[[PackedLayer], dict[str, Any]]  # of the kernels' blocks, likewise
    tables_shape: Callable[[Tables], dict[str, Any]]

    def sentence(self) -> str:
        """What was chosen and why, for people."""
        return f"computing on {self.device} with {self.kernel}: {self.reason}"

    def record(
        self, method: Method | None, layer: PackedLayer | None, tables: Tables | None
    ) -> dict[str, Any]:
        """What was chosen and why, for the manifest; method is None where q, k, v are not made."""
        shape: dict[str, Any] = {}
        if tables is not None:
            shape = self.tables_shape(tables)
        elif layer is not None:
            shape = self.direct_shape(layer)
        return {
            "device": self.device.type,
            "kernel": self.kernel,
            "reason": self.reason,
            "method": method.name if method else None,
            "method_reason": method.reason if method else None,
            "precision": "ieee" if tables is not None else self.precision,
            "place": self.place,
            "configuration": shape,
        }


def choose(device: str, dtype: torch.dtype, *, tf32: bool = False) -> Backend:
    """The backend for a device name: "auto", "cpu", "cuda" or "cuda:N".

    "auto" takes the GPU where torch sees one and Triton is installed, else the CPU, and the reason
    says which and why. A device that is named is taken or refused, never replaced.

    Raises:
        DeviceError: if the name is of another form, the device that it names is not there, or
            `tf32` is asked of the CPU.
    """
    if not DEVICE_NAMES.fullmatch(device):
        raise DeviceError(f"--device {device!r} is not auto, cpu, cuda or cuda:N")
    missing = _why_no_gpu(device)
    if device == "cpu" or (device == "auto" and missing):
        if tf32:
            raise DeviceError("--tf32 needs a CUDA device: the CPU computes float32 as float32")
        return _cpu("the CPU was asked for" if device == "cpu" else f"{missing}")
    if missing:
        raise DeviceError(f"--device {device}: {missing}; use --device cpu or --device auto")
    place = torch.device("cuda" if device == "auto" else device)
    if place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(place)
    reason = f"torch sees {name}" if device == "auto" else f"{name} was asked for"
    return _cuda(place, dtype, tf32, reason)


def _why_no_gpu(device: str) -> str | None:
    """Why the Triton kernel cannot run on a device, or None where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    count = torch.cuda.device_count()
    index = device.partition(":")[2]
    if index and int(index) >= count:
        return f"torch sees {count} CUDA device(s), the first of them cuda:0"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def _cpu(reason: str) -> Backend:
    return Backend(
        device=torch.device("cpu"),
        kernel="torch-cpu",
        precision="ieee",
        reason=reason,
        embed=direct.embed,
        project=direct.project,
        combine=combine.combine,
        combined_by=combine.body,
        place=_cpu_place(),
        direct_shape=lambda layer: {"block_rows": direct.block_rows(layer)},
        tables_shape=lambda tables: {"build_rows": BUILD_ROWS},
    )


def _cpu_place() -> dict[str, Any]:
    """What MKL and oneDNN choose their code by: two CPUs that differ in it may differ in bits."""
    names = [name for name in CPU_SETTINGS if name in os.environ]
    settings = {name: os.environ[name].encode("ascii", "backslashreplace") for name in names}
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_vendor": _cpu_vendor(),
        **{name: value.decode() for name, value in settings.items()},
    }


@cache
def _cpu_vendor() -> str:
    """The maker of the CPU, such as "AuthenticAMD"; the architecture where Linux does not say."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _cuda(device: torch.device, dtype: torch.dtype, tf32: bool, reason: str) -> Backend:
    from kernels import combine_triton, direct_triton

    return Backend(
        device=device,
        kernel="triton",
        precision="tf32" if tf32 and dtype == torch.float32 else "ieee",
        reason=reason,
        embed=direct_triton.embed,
        project=partial(direct_triton.project, tf32=tf32),
        combine=combine_triton.combine,
        combined_by=lambda tables, dtype: ("triton", reason),
        place={"gpu": torch.cuda.get_device_name(device)},
        direct_shape=lambda layer: asdict(direct_triton.tile_for(layer)),
        tables_shape=lambda tables: {
            "build_rows": BUILD_ROWS,
            "block_m": combine_triton.tokens_per_program(tables.head_dim),
            "block_n": combine_triton.BLOCK_N,
            "num_warps": combine_triton.NUM_WARPS,
            "norm_block_m": combine_triton.NORM_BLOCK_M,
            "norm_block_k": combine_triton.NORM_BLOCK_K,
        },
    )
