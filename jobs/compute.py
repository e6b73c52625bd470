"""The window stage: windows are computed, written and hashed at the same time, shard by shard."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import cycle
from queue import SimpleQueue

import torch
from torch import Tensor

from exporters.contents import TensorPlan
from exporters.files import FileRecord
from exporters.folder import Work
from exporters.manifest import FileEntry
from exporters.shards import AHEAD, DTYPE_NAMES, Shape, file_order, write_pieces, write_tensors
from exporters.source import WindowSource, fill, separate
from jobs.outputs import allocate, shard_name
from jobs.progress import Advance, Reporter
from kernels.errors import DeviceError

METADATA = ("format", "pt")
MADE_AGAIN = "is not as it was written: it is made again"
PIECE_BYTES = 8 << 20  # of one tensor, computed at once: still in the caches when it is written
STEP_TOKENS = 1 << 14  # computed at once where whole shards are held
PIECE_TOKENS = 1 << 16  # of a piece at most, since ids are cut for all of them


@dataclass(frozen=True)
class Shard:
    """A file of windows: its name, its first window and the one after its last."""

    name: str
    first: int
    stop: int


def write_shards(
    work: Work,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    windows_per_shard: int,
    reporter: Reporter,
) -> list[FileEntry]:
    """Compute and write every shard that is not kept; returns the entries of all, in order.

    Raises:
        ExportError: if a shard cannot be written.
    """
    count = source.windows.count
    firsts = range(0, count, windows_per_shard)
    shards = [
        Shard(shard_name(index, len(firsts)), first, min(first + windows_per_shard, count))
        for index, first in enumerate(firsts)
    ]
    for shard in shards:
        kept, count = work.kept(shard.name), shard.stop - shard.first
        declared = {name: (plan.dtype, (count, *plan.shape)) for name, plan in plans.items()}
        if kept and kept != entry_of(kept, "windows", declared, shard.first, count):
            work.journal.forget(shard.name)
            reporter.note(f"{work.root / shard.name} {MADE_AGAIN}")
    missing = [shard for shard in shards if work.kept(shard.name) is None]
    windows = sum(shard.stop - shard.first for shard in missing)
    with reporter.stage("windows", windows, "windows") as advance:
        if missing and separate(source.backend, "tables" if source.tables else "direct"):
            _stream(work, source, plans, missing, reporter, advance)
        elif missing:
            _compute_ahead(work, source, plans, missing, reporter, advance)
    return [work.journal.files[shard.name] for shard in shards]


def buffer_bytes(plans: dict[str, TensorPlan], shards: int, shard_bytes: int, pieces: bool) -> int:
    """Bytes of the buffers that write_shards holds, for so many shards; by pieces or whole."""
    if pieces:
        return min(torch.get_num_threads(), shards) * (AHEAD + 1) * _piece_bytes(plans)
    return min(2, shards) * shard_bytes


def _piece_bytes(plans: dict[str, TensorPlan]) -> int:
    """Bytes of the largest piece: a piece holds one window at least."""
    return max(PIECE_BYTES, *(plan.window_bytes for plan in plans.values()))


def _stream(
    work: Work,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    shards: list[Shard],
    reporter: Reporter,
    advance: Advance,
) -> None:
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

    def write(shard: Shard) -> tuple[float, float]:
        """Write a shard; returns the seconds of computing and of all."""
        reporter.check()
        computing = 0.0
        buffers = idle.get()

        def pieces() -> Iterator[Tensor]:
            nonlocal computing
            turns = cycle(buffers)
            for name in order:
                plan = plans[name]
                most = min(PIECE_BYTES // plan.window_bytes, PIECE_TOKENS // length)
                step = max(1, most)
                for at in range(shard.first, shard.stop, step):
                    reporter.check()
                    until = min(at + step, shard.stop)
                    began = time.monotonic()
                    data = next(turns)[: (until - at) * plan.window_bytes]
                    piece = data.view(plan.dtype).view(until - at, *plan.shape)
                    fill(source, at, until, {name: piece})
                    computing += time.monotonic() - began
                    yield piece

        began = time.monotonic()
        count = shard.stop - shard.first
        declared = {name: (plan.dtype, (count, *plan.shape)) for name, plan in plans.items()}
        try:
            record = write_pieces(work.root, shard.name, declared, pieces(), METADATA)
        finally:
            idle.put(buffers)
        work.journal.add_file(entry_of(record, "windows", declared, shard.first, count))
        return computing, time.monotonic() - began

    try:
        with ThreadPoolExecutor(workers, "shard", torch.set_num_threads, (1,)) as pool:
            futures = {pool.submit(write, shard): shard for shard in shards}
            try:
                for future in as_completed(futures):
                    computing, seconds = future.result()
                    reporter.add("compute", computing / workers)
                    reporter.add("write", (seconds - computing) / workers)
                    advance(futures[future].stop - futures[future].first)
            except BaseException:
                # Shards that other threads are at are finished first: they are kept.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # What a thread of the pool set is what torch gives to threads that start later.
        torch.set_num_threads(threads)


def _compute_ahead(
    work: Work,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    shards: list[Shard],
    reporter: Reporter,
    advance: Advance,
) -> None:
    """Compute whole shards, two buffers in turn: one is written while the next is computed."""
    on_gpu = source.backend is not None and source.backend.device.type == "cuda"
    most = max(shard.stop - shard.first for shard in shards)
    buffers = [allocate(plans, most, pinned=on_gpu) for _ in shards[:2]]
    step = max(1, STEP_TOKENS // source.windows.context_length)
    halved = False
    written: Future[float] | None = None

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        for shard, buffer in zip(shards, cycle(buffers), strict=False):
            count = shard.stop - shard.first
            tensors = {name: tensor[:count] for name, tensor in buffer.items()}
            began = time.monotonic()
            at = shard.first
            while at < shard.stop:
                until = min(at + step, shard.stop)
                rows = slice(at - shard.first, until - shard.first)
                try:
                    fill(source, at, until, {name: t[rows] for name, t in tensors.items()})
                except torch.OutOfMemoryError as error:
                    if step == 1:
                        raise DeviceError(
                            "the GPU's memory ran out on one window; give a smaller "
                            "--context-length or --device cpu"
                        ) from error
                    if not halved:
                        reporter.note("the GPU's memory ran out: computing fewer windows at once")
                    step, halved = step // 2, True
                    torch.cuda.empty_cache()
                    continue
                advance(until - at)
                at = until
            reporter.add("compute", time.monotonic() - began)
            if written is not None:
                reporter.add("write", written.result())
            written = writer.submit(_write, work, shard, tensors)
        if written is not None:
            reporter.add("write", written.result())


def _write(work: Work, shard: Shard, tensors: dict[str, Tensor]) -> float:
    """Write one shard; returns how many seconds it took."""
    began = time.monotonic()
    record = write_tensors(work.root, shard.name, tensors, METADATA)
    count = shard.stop - shard.first
    work.journal.add_file(entry_of(record, "windows", shapes(tensors), shard.first, count))
    return time.monotonic() - began


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """dtype and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def entry_of(
    record: FileRecord | FileEntry,
    kind: str,
    declared: Mapping[str, Shape],
    first: int = 0,
    count: int = 0,
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
