"""The window stage: every shard that is missing is made, here by threads, or on a cluster."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from queue import SimpleQueue

import torch
from torch import Tensor

from exporters.contents import TensorPlan
from exporters.folder import Work
from exporters.manifest import FileEntry
from exporters.shards import AHEAD
from exporters.source import WindowSource, separate
from jobs.outputs import allocate, shard_name
from jobs.pace import Stage
from jobs.progress import Reporter
from jobs.shards import (
    Made,
    Shard,
    compute_whole,
    first_step,
    make_by_pieces,
    piece_buffers,
    piece_bytes,
    shard_entry,
    slower_body,
    write_whole,
)
from jobs.staging import Wait, staging_for
from kernels.alone import lone_threads

log = logging.getLogger(__name__)

MADE_AGAIN = "is not as it was written: it is made again"
WROTE = "wrote %s: %d bytes in %.2f s"


@dataclass(frozen=True, kw_only=True)
class WindowJob:
    """The shards that are to be made, and what of."""

    work: Work
    source: WindowSource
    plans: dict[str, TensorPlan]
    shards: Sequence[Shard]

    @property
    def method(self) -> str:
        return "tables" if self.source.tables else "direct"


Make = Callable[[WindowJob, Reporter, Stage, Callable[[], None]], None]
"""Makes all shards of a job; tells the stage of windows and bytes, and calls after each shard."""


def write_shards(
    work: Work,
    source: WindowSource,
    plans: dict[str, TensorPlan],
    windows: int,
    windows_per_shard: int,
    reporter: Reporter,
    make: Make | None = None,
) -> list[FileEntry]:
    """Compute and write every shard that is not kept; returns the entries of all, in order.

    Args:
        windows: how many there are in all.
        make: what makes the shards; by default threads of this process.

    Raises:
        ExportError: if a shard cannot be written.
    """
    firsts = range(0, windows, windows_per_shard)
    shards = [
        Shard(shard_name(index, len(firsts)), first, min(first + windows_per_shard, windows))
        for index, first in enumerate(firsts)
    ]
    for shard in shards:
        kept = work.kept(shard.name)
        if kept and kept != shard_entry(kept, plans, shard):
            work.journal.forget(shard.name)
            reporter.note(f"{work.out / shard.name} {MADE_AGAIN}")
    missing = [shard for shard in shards if work.kept(shard.name) is None]
    with reporter.stage("windows", windows, "windows") as stage:
        stage.skip(windows - sum(shard.windows for shard in missing))
        written = len(shards) - len(missing)

        def on_shard() -> None:
            nonlocal written
            written += 1
            stage.extra(f"{written:,} of {len(shards):,} shards")

        if missing:
            job = WindowJob(work=work, source=source, plans=plans, shards=missing)
            (make or make_here)(job, reporter, stage, on_shard)
    return [work.journal.files[shard.name] for shard in shards]


def buffer_bytes(plans: dict[str, TensorPlan], shards: int, shard_bytes: int, pieces: bool) -> int:
    """Bytes of the buffers that write_shards holds, for so many shards; by pieces or whole."""
    if pieces:
        return min(torch.get_num_threads(), shards) * (AHEAD + 1) * piece_bytes(plans)
    return min(2, shards) * shard_bytes


def make_here(
    job: WindowJob, reporter: Reporter, stage: Stage, on_shard: Callable[[], None]
) -> None:
    """Make shards by the threads of this process."""
    if (note := slower_body(job.source, job.plans)) is not None:
        reporter.note(note)
    if separate(job.source.backend, job.method):
        _stream(job, reporter, stage, on_shard)
    else:
        _compute_ahead(job, reporter, stage, on_shard)


def _stream(job: WindowJob, reporter: Reporter, stage: Stage, on_shard: Callable[[], None]) -> None:
    """As many shards as there are threads are made at once, each by one thread and one that hashes:
    a hash cannot be shared by threads, and neither can the writes to one file.
    """
    workers = min(torch.get_num_threads(), len(job.shards))
    idle: SimpleQueue[list[Tensor]] = SimpleQueue()
    for _ in range(workers):
        idle.put(piece_buffers(job.plans))

    def write(shard: Shard) -> Made:
        reporter.check()
        buffers = idle.get()
        try:
            made = make_by_pieces(
                job.work.root, job.source, job.plans, shard, buffers, _counter(job, stage)
            )
        finally:
            idle.put(buffers)
        job.work.journal.add_file(shard_entry(made.record, job.plans, shard))
        log.info(WROTE, shard.name, made.record.bytes, made.seconds)
        return made

    with lone_threads(workers, "shard") as pool:
        futures = [pool.submit(write, shard) for shard in job.shards]
        try:
            for future in as_completed(futures):
                made = future.result()
                reporter.add("compute", made.computing / workers)
                reporter.add("write", (made.seconds - made.computing) / workers)
                on_shard()
        except BaseException:
            # Shards that other threads are at are finished first: they are kept.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compute_ahead(
    job: WindowJob, reporter: Reporter, stage: Stage, on_shard: Callable[[], None]
) -> None:
    """Compute whole shards, two buffers in turn: one is written while the next is computed.

    The time of writing is what the job waits for it.
    """
    device = job.source.backend.device if job.source.backend else torch.device("cpu")
    most = max(shard.windows for shard in job.shards)
    pinned = device.type == "cuda"
    buffers = [allocate(job.plans, most, pinned=pinned) for _ in job.shards[:2]]
    step = first_step(job.source)
    staging = staging_for(device)
    written: Future[None] | None = None

    def wait_for(writing: Future[None]) -> None:
        began = time.monotonic()
        writing.result()
        reporter.add("write", time.monotonic() - began)
        on_shard()

    def write(shard: Shard, tensors: dict[str, Tensor], arrived: Wait, began: float) -> None:
        arrived()
        record = write_whole(job.work.root, shard, tensors)
        job.work.journal.add_file(shard_entry(record, job.plans, shard))
        log.info(WROTE, shard.name, record.bytes, time.monotonic() - began)

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer, closing(staging):
        for shard, buffer in zip(job.shards, cycle(buffers), strict=False):
            tensors = {name: tensor[: shard.windows] for name, tensor in buffer.items()}
            began = time.monotonic()
            arrived, step = compute_whole(
                job.source, job.plans, shard, tensors, staging, step, _counter(job, stage),
                reporter.note,
            )  # fmt: skip
            reporter.add("compute", time.monotonic() - began)
            if written is not None:
                wait_for(written)
            written = writer.submit(write, shard, tensors, arrived, began)
        if written is not None:
            wait_for(written)


def _counter(job: WindowJob, stage: Stage) -> Callable[[int, int], None]:
    """What tells a stage of windows and bytes."""

    def count(windows: int, size: int) -> None:
        stage.add(tokens=windows * job.source.context_length, bytes=size)
        stage(windows)

    return count
