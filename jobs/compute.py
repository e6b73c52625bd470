"""The window stage: shards are computed in order, each written while the next is computed."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from exporters.contents import TensorPlan
from exporters.files import FileRecord
from exporters.manifest import FileEntry
from exporters.shards import DTYPE_NAMES, write_tensors
from exporters.source import WindowSource, fill, steps
from jobs.outputs import allocate, shard_name
from jobs.progress import Reporter


def write_shards(
    root: Path,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    windows_per_shard: int,
    reporter: Reporter,
) -> list[FileEntry]:
    """Compute and write every shard, in order; returns their entries of the manifest.

    Two shards are held at once: one is written and hashed while the next is computed.

    Raises:
        ExportError: if a shard cannot be written.
    """
    count = source.windows.count
    total = -(-count // windows_per_shard)
    on_gpu = source.backend is not None and source.backend.device.type == "cuda"
    held = min(windows_per_shard, count)
    buffers = [allocate(plans, held, pinned=on_gpu) for _ in range(min(2, total))]
    entries: list[FileEntry] = []
    written: Future[tuple[FileEntry, float]] | None = None

    def collect(future: Future[tuple[FileEntry, float]]) -> None:
        entry, seconds = future.result()
        reporter.add("write", seconds)
        entries.append(entry)

    with (
        reporter.stage("windows", count, "windows") as advance,
        ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
    ):
        for index in range(total):
            first = index * windows_per_shard
            stop = min(first + windows_per_shard, count)
            tensors = {n: buffer[: stop - first] for n, buffer in buffers[index % 2].items()}
            began = time.monotonic()
            for at, until in steps(first, stop, source.windows.context_length):
                part = {
                    name: tensor[at - first : until - first] for name, tensor in tensors.items()
                }
                fill(source, at, until, part)
                advance(until - at)
            reporter.add("compute", time.monotonic() - began)
            if written is not None:
                collect(written)
            written = writer.submit(_write, root, shard_name(index, total), tensors, first)
        if written is not None:
            collect(written)
    return entries


def _write(
    root: Path, name: str, tensors: dict[str, Tensor], first: int
) -> tuple[FileEntry, float]:
    """Write one shard; returns its entry and how many seconds it took."""
    began = time.monotonic()
    record = write_tensors(root, name, tensors, ("format", "pt"))
    entry = entry_of(record, "windows", tensors, first, len(tensors["window_start"]))
    return entry, time.monotonic() - began


def entry_of(
    record: FileRecord, kind: str, tensors: Mapping[str, Tensor], first: int = 0, count: int = 0
) -> FileEntry:
    """The manifest's entry of a file that holds some tensors."""
    return FileEntry(
        name=record.name,
        kind=kind,
        bytes=record.bytes,
        sha256=record.sha256,
        first=first,
        count=count,
        tensors={
            name: {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
            for name, tensor in tensors.items()
        },
    )
