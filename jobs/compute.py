"""The window stage: token stream -> windows -> features and Q, K, V -> shards."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from exporters.manifest import FileEntry
from exporters.shards import DTYPE_NAMES, write_tensors
from exporters.tokens import TokenStream
from jobs.outputs import TensorPlan, allocate, shard_name
from jobs.progress import Reporter
from jobs.windows import WindowPlan, cut_windows
from kernels.dispatch import Backend
from kernels.layer import PackedLayer

STEP_TOKENS = 1 << 14  # tokens that are cut, computed and copied at once


@dataclass(frozen=True, kw_only=True)
class WindowStage:
    """Everything that a shard is computed from."""

    plans: dict[str, TensorPlan]
    windows: WindowPlan
    stream: TokenStream
    layer: PackedLayer | None
    backend: Backend | None
    layout: str


def write_shards(
    root: Path, stage: WindowStage, windows_per_shard: int, reporter: Reporter
) -> list[FileEntry]:
    """Compute and write every shard, in order; returns their entries of the manifest.

    Raises:
        ExportError: if a shard cannot be written.
    """
    count = stage.windows.count
    total = -(-count // windows_per_shard)
    on_gpu = stage.backend is not None and stage.backend.device.type == "cuda"
    buffers = allocate(stage.plans, min(windows_per_shard, count), pinned=on_gpu)
    entries = []
    with reporter.stage("windows", count, "windows") as advance:
        for index in range(total):
            first = index * windows_per_shard
            stop = min(first + windows_per_shard, count)
            tensors = {name: buffer[: stop - first] for name, buffer in buffers.items()}
            for at, until in _steps(first, stop, stage.windows.context_length):
                part = {
                    name: tensor[at - first : until - first] for name, tensor in tensors.items()
                }
                fill(stage, at, until, part)
                advance(until - at)
            record = write_tensors(root, shard_name(index, total), tensors, ("format", "pt"))
            entries.append(
                FileEntry(
                    name=record.name,
                    kind="windows",
                    bytes=record.bytes,
                    sha256=record.sha256,
                    first=first,
                    count=stop - first,
                    tensors=describe(tensors),
                )
            )
    return entries


def fill(stage: WindowStage, first: int, stop: int, out: dict[str, Tensor]) -> None:
    """Write windows first to stop - 1 into host tensors, one row a window."""
    starts = stage.windows.starts(first, stop)
    windows = cut_windows(stage.stream, starts, stage.windows.context_length)
    for name in ("window_start", "input_ids", "target_ids", "document_ids"):
        if name in out:
            out[name].copy_(getattr(windows, name))
    if stage.layer is None or stage.backend is None:
        return
    device = stage.backend.device
    ids = windows.input_ids.to(device)

    def on_device(name: str) -> Tensor:
        """The output itself on the CPU, a buffer to be copied from on a GPU."""
        return (
            out[name]
            if device.type == "cpu"
            else out[name].new_empty(out[name].shape, device=device)
        )

    results: dict[str, Tensor] = {}
    if "x" in out:
        results |= {"x": on_device("x"), "y": on_device("y")}
        stage.backend.embed(stage.layer, ids, results["x"])
        stage.backend.embed(stage.layer, windows.target_ids.to(device), results["y"])
    if "q" in out:
        qkv = {name: on_device(name) for name in ("q", "k", "v")}
        swap = stage.layout == "bthd"
        by_head = [tensor.transpose(1, 2) if swap else tensor for tensor in qkv.values()]
        stage.backend.project(stage.layer, ids, *by_head)
        results |= qkv
    for name, result in results.items():
        if result is not out[name]:
            out[name].copy_(result)


def describe(tensors: dict[str, Tensor]) -> dict[str, dict[str, object]]:
    """dtype and shape of each tensor, for the manifest."""
    return {
        name: {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def _steps(first: int, stop: int, context_length: int) -> list[tuple[int, int]]:
    """Cut [first, stop) windows into steps of about STEP_TOKENS tokens."""
    step = max(1, STEP_TOKENS // context_length)
    return [(at, min(at + step, stop)) for at in range(first, stop, step)]
