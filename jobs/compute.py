"""The window stage: windows are computed, written and hashed at the same time, shard by shard."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from exporters.contents import TensorPlan
from exporters.files import FileRecord
from exporters.manifest import FileEntry
from exporters.shards import AHEAD, DTYPE_NAMES, Shape, file_order, write_pieces, write_tensors
from exporters.source import WindowSource, fill, separate
from jobs.outputs import allocate, shard_name
from jobs.progress import Reporter

METADATA = ("format", "pt")
PIECE_BYTES = 8 << 20  # of one tensor, computed at once: still in the caches when it is written
STEP_TOKENS = 1 << 14  # computed at once where whole shards are held
PIECE_TOKENS = 1 << 16  # of a piece at most, since ids are cut for all of them


def write_shards(
    root: Path,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    windows_per_shard: int,
    reporter: Reporter,
) -> list[FileEntry]:
    """Compute and write every shard, in order; returns their entries of the manifest.

    Raises:
        ExportError: if a shard cannot be written.
    """
    count = source.windows.count
    shards = [
        (first, min(first + windows_per_shard, count))
        for first in range(0, count, windows_per_shard)
    ]
    if separate(source.backend, "tables" if source.tables else "direct"):
        return _stream(root, source, plans, shards, reporter)
    return _compute_ahead(root, source, plans, shards, reporter)


def buffer_bytes(plans: dict[str, TensorPlan], shards: int, shard_bytes: int, pieces: bool) -> int:
    """Bytes of the buffers that write_shards holds, for so many shards; by pieces or whole."""
    if pieces:
        return min(torch.get_num_threads(), shards) * (AHEAD + 1) * _piece_bytes(plans)
    return min(2, shards) * shard_bytes


def _piece_bytes(plans: dict[str, TensorPlan]) -> int:
    """Bytes of the largest piece: a piece holds one window at least."""
    return max(PIECE_BYTES, *(plan.window_bytes for plan in plans.values()))


def _stream(
    root: Path,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    shards: list[tuple[int, int]],
    reporter: Reporter,
) -> list[FileEntry]:
    """Compute the tensors of a shard one by one, in pieces that go straight to its file.

    As many shards as there are threads are made at once, each by one thread and one that hashes:
    a hash cannot be shared by threads, and neither can the writes to one file.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(shards))
    order = file_order({name: plan.dtype for name, plan in plans.items()})
    size = _piece_bytes(plans)
    length = source.windows.context_length
    idle: SimpleQueue[list[Tensor]] = SimpleQueue()
    for _ in range(workers):
        idle.put([torch.empty(size, dtype=torch.uint8) for _ in range(AHEAD + 1)])

    def write(index: int) -> tuple[FileEntry, float, float]:
        """Write a shard; returns its entry and the seconds of computing and of all."""
        first, stop = shards[index]
        computing = 0.0
        buffers = idle.get()

        def pieces() -> Iterator[Tensor]:
            nonlocal computing
            turns = cycle(buffers)
            for name in order:
                plan = plans[name]
                most = min(PIECE_BYTES // plan.window_bytes, PIECE_TOKENS // length)
                step = max(1, most)
                for at in range(first, stop, step):
                    until = min(at + step, stop)
                    began = time.monotonic()
                    data = next(turns)[: (until - at) * plan.window_bytes]
                    piece = data.view(plan.dtype).view(until - at, *plan.shape)
                    fill(source, at, until, {name: piece})
                    computing += time.monotonic() - began
                    yield piece

        began = time.monotonic()
        declared = {name: (p.dtype, (stop - first, *p.shape)) for name, p in plans.items()}
        name = shard_name(index, len(shards))
        try:
            record = write_pieces(root, name, declared, pieces(), METADATA)
        finally:
            idle.put(buffers)
        entry = entry_of(record, "windows", declared, first, stop - first)
        return entry, computing, time.monotonic() - began

    entries = []
    try:
        with (
            reporter.stage("windows", source.windows.count, "windows") as advance,
            ThreadPoolExecutor(workers, "shard", torch.set_num_threads, (1,)) as pool,
        ):
            for entry, computing, seconds in pool.map(write, range(len(shards))):
                entries.append(entry)
                reporter.add("compute", computing / workers)
                reporter.add("write", (seconds - computing) / workers)
                advance(entry.count)
    finally:
        # What a thread of the pool set is what torch gives to threads that start later.
        torch.set_num_threads(threads)
    return entries


def _compute_ahead(
    root: Path,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    shards: list[tuple[int, int]],
    reporter: Reporter,
) -> list[FileEntry]:
    """Compute whole shards, two buffers in turn: one is written while the next is computed."""
    count = source.windows.count
    on_gpu = source.backend is not None and source.backend.device.type == "cuda"
    buffers = [allocate(plans, shards[0][1], pinned=on_gpu) for _ in shards[:2]]
    step = max(1, STEP_TOKENS // source.windows.context_length)
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
        for index, (first, stop) in enumerate(shards):
            tensors = {n: buffer[: stop - first] for n, buffer in buffers[index % 2].items()}
            began = time.monotonic()
            for at in range(first, stop, step):
                until = min(at + step, stop)
                rows = slice(at - first, until - first)
                fill(source, at, until, {name: tensor[rows] for name, tensor in tensors.items()})
                advance(until - at)
            reporter.add("compute", time.monotonic() - began)
            if written is not None:
                collect(written)
            written = writer.submit(_write, root, shard_name(index, len(shards)), tensors, first)
        if written is not None:
            collect(written)
    return entries


def _write(
    root: Path, name: str, tensors: dict[str, Tensor], first: int
) -> tuple[FileEntry, float]:
    """Write one shard; returns its entry and how many seconds it took."""
    began = time.monotonic()
    record = write_tensors(root, name, tensors, METADATA)
    entry = entry_of(record, "windows", shapes(tensors), first, len(tensors["window_start"]))
    return entry, time.monotonic() - began


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """dtype and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def entry_of(
    record: FileRecord, kind: str, declared: Mapping[str, Shape], first: int = 0, count: int = 0
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
            name: {"dtype": DTYPE_NAMES[dtype], "shape": list(shape)}
            for name, (dtype, shape) in declared.items()
        },
    )
