"""The window stage: windows are computed, written and hashed at the same time, shard by shard."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from queue import SimpleQueue

import torch
from torch import Tensor

from exporters.contents import TensorPlan, window_bytes
from exporters.files import FileRecord
from exporters.folder import Work
from exporters.manifest import FileEntry
from exporters.shards import AHEAD, DTYPE_NAMES, Shape, file_order, write_pieces, write_tensors
from exporters.source import WindowSource, fill, separate
from jobs.outputs import allocate, shard_name
from jobs.pace import Stage
from jobs.progress import Reporter
from jobs.staging import Wait, staging_for
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
            reporter.note(f"{work.out / shard.name} {MADE_AGAIN}")
    missing = [shard for shard in shards if work.kept(shard.name) is None]
    with reporter.stage("windows", source.windows.count, "windows") as stage:
        stage.skip(source.windows.count - sum(shard.stop - shard.first for shard in missing))
        written = len(shards) - len(missing)

        def on_shard() -> None:
            nonlocal written
            written += 1
            stage.extra(f"{written:,} of {len(shards):,} shards")

        if missing and separate(source.backend, "tables" if source.tables else "direct"):
            _stream(work, source, plans, missing, reporter, stage, on_shard)
        elif missing:
            _compute_ahead(work, source, plans, missing, reporter, stage, on_shard)
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
    stage: Stage,
    on_shard: Callable[[], None],
) -> None:
    """Compute the tensors of a shard one by one, in pieces that go straight to its file.

    As many shards as there are threads are made at once, each by one thread and one that hashes:
    a hash cannot be shared by threads, and neither can the writes to one file.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(shards))
    order = file_order({name: plan.dtype for name, plan in plans.items()})
    size = _piece_bytes(plans)
    length, per_window = source.windows.context_length, window_bytes(plans)
    idle: SimpleQueue[list[Tensor]] = SimpleQueue()
    for _ in range(workers):
        idle.put([torch.empty(size, dtype=torch.uint8) for _ in range(AHEAD + 1)])

    def write(shard: Shard) -> tuple[float, float]:
        """Write a shard; returns the seconds of computing and of all."""
        reporter.check()
        computing = 0.0
        made = 0  # bytes
        buffers = idle.get()
        count = shard.stop - shard.first

        def pieces() -> Iterator[Tensor]:
            nonlocal computing, made
            turns = cycle(buffers)
            for name in order:
                plan = plans[name]
                most = min(PIECE_BYTES // plan.window_bytes, PIECE_TOKENS // length)
                step = max(1, most)
                for at in range(shard.first, shard.stop, step):
                    until = min(at + step, shard.stop)
                    began = time.monotonic()
                    data = next(turns)[: (until - at) * plan.window_bytes]
                    piece = data.view(plan.dtype).view(until - at, *plan.shape)
                    fill(source, at, until, {name: piece})
                    computing += time.monotonic() - began
                    # A window counts once there are as many bytes: all are whole at the end only.
                    windows = (made + piece.nbytes) // per_window - made // per_window
                    made += piece.nbytes
                    stage.add(tokens=windows * length, bytes=piece.nbytes)
                    stage(windows)
                    yield piece

        began = time.monotonic()
        declared = {name: (plan.dtype, (count, *plan.shape)) for name, plan in plans.items()}
        try:
            record = write_pieces(work.root, shard.name, declared, pieces(), METADATA)
        finally:
            idle.put(buffers)
        work.journal.add_file(entry_of(record, "windows", declared, shard.first, count))
        return computing, time.monotonic() - began

    try:
        with ThreadPoolExecutor(workers, "shard", torch.set_num_threads, (1,)) as pool:
            futures = [pool.submit(write, shard) for shard in shards]
            try:
                for future in as_completed(futures):
                    computing, seconds = future.result()
                    reporter.add("compute", computing / workers)
                    reporter.add("write", (seconds - computing) / workers)
                    on_shard()
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
    stage: Stage,
    on_shard: Callable[[], None],
) -> None:
    """Compute whole shards, two buffers in turn: one is written while the next is computed.

    The time of writing is what the job waits for it.
    """
    device = source.backend.device if source.backend else torch.device("cpu")
    most = max(shard.stop - shard.first for shard in shards)
    buffers = [allocate(plans, most, pinned=device.type == "cuda") for _ in shards[:2]]
    length, per_window = source.windows.context_length, window_bytes(plans)
    step = max(1, STEP_TOKENS // length)
    halved = False
    staging = staging_for(device)
    written: Future[None] | None = None

    def wait_for(writing: Future[None]) -> None:
        began = time.monotonic()
        writing.result()
        reporter.add("write", time.monotonic() - began)
        on_shard()

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer, closing(staging):
        for shard, buffer in zip(shards, cycle(buffers), strict=False):
            tensors = {name: t[: shard.stop - shard.first] for name, t in buffer.items()}
            began = time.monotonic()
            at = shard.first
            while at < shard.stop:
                until = min(at + step, shard.stop)
                rows = slice(at - shard.first, until - shard.first)
                host = {name: tensor[rows] for name, tensor in tensors.items()}
                try:
                    fill(source, at, until, staging.target(host))
                except torch.OutOfMemoryError as error:
                    if step == 1:
                        raise DeviceError(
                            "the GPU's memory ran out on one window; give a smaller "
                            "--context-length or --device cpu"
                        ) from error
                    if not halved:
                        reporter.note("the GPU's memory ran out: computing fewer windows at once")
                    step, halved = step // 2, True
                else:
                    arrived = staging.send(host)
                    stage.add(tokens=(until - at) * length, bytes=(until - at) * per_window)
                    stage(until - at)
                    at = until
                    continue
                # Not before the error is gone, whose traceback holds the buffers.
                staging.close()
                torch.cuda.empty_cache()
            reporter.add("compute", time.monotonic() - began)
            if written is not None:
                wait_for(written)
            written = writer.submit(_write, work, shard, tensors, arrived)
        if written is not None:
            wait_for(written)


def _write(work: Work, shard: Shard, tensors: dict[str, Tensor], arrived: Wait) -> None:
    """Write one shard, once all of it is there."""
    arrived()
    record = write_tensors(work.root, shard.name, tensors, METADATA)
    count = shard.stop - shard.first
    work.journal.add_file(entry_of(record, "windows", shapes(tensors), shard.first, count))


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
