"""One shard of windows: computed, hashed and written, on this machine or a worker of a cluster."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from exporters.contents import TensorPlan, window_bytes
from exporters.files import FileRecord
from exporters.manifest import FileEntry
from exporters.shards import AHEAD, DTYPE_NAMES, Shape, file_order, write_pieces, write_tensors
from exporters.source import WindowSource, fill
from jobs.outputs import allocate
from jobs.staging import Staging, Wait, staging_for
from kernels.errors import DeviceError

METADATA = ("format", "pt")
PIECE_BYTES = 8 << 20  # of one tensor, computed at once: still in the caches when it is written
# Computed at once where whole shards are held. The last block of a step is a product of fewer rows,
# whose bits may be others: how many hangs on nothing of the machine.
STEP_TOKENS = 1 << 14
PIECE_TOKENS = 1 << 16  # of a piece at most, since ids are cut for all of them

OnWindows = Callable[[int, int], None]
"""Told of windows that are done, which may be none so far, and of bytes."""


@dataclass(frozen=True)
class Shard:
    """A file of windows: its name, its first window and the one after its last."""

    name: str
    first: int
    stop: int

    @property
    def windows(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Made:
    """A shard that is written, and the seconds that it took."""

    shard: Shard
    record: FileRecord
    computing: float
    seconds: float  # computing among them


def piece_bytes(plans: Mapping[str, TensorPlan]) -> int:
    """Bytes of the largest piece: a piece holds one window at least."""
    return max(PIECE_BYTES, *(plan.window_bytes for plan in plans.values()))


def piece_buffers(plans: Mapping[str, TensorPlan]) -> list[Tensor]:
    """What make_by_pieces computes into, in turn."""
    return [torch.empty(piece_bytes(plans), dtype=torch.uint8) for _ in range(AHEAD + 1)]


def make_by_pieces(
    root: Path,
    source: WindowSource,
    plans: Mapping[str, TensorPlan],
    shard: Shard,
    buffers: list[Tensor],
    on_windows: OnWindows,
) -> Made:
    """Compute the tensors of a shard one by one, in pieces that go straight to its file.

    Raises:
        ExportError: if the file cannot be written.
    """
    began = time.monotonic()
    computing = 0.0
    per_window, length = window_bytes(dict(plans)), source.context_length
    order = file_order({name: plan.dtype for name, plan in plans.items()})

    def pieces() -> Iterator[Tensor]:
        nonlocal computing
        made = 0  # bytes
        turns = cycle(buffers)
        for name in order:
            plan = plans[name]
            most = min(PIECE_BYTES // plan.window_bytes, PIECE_TOKENS // length)
            step = max(1, most)
            for at in range(shard.first, shard.stop, step):
                until = min(at + step, shard.stop)
                since = time.monotonic()
                data = next(turns)[: (until - at) * plan.window_bytes]
                piece = data.view(plan.dtype).view(until - at, *plan.shape)
                fill(source, at, until, {name: piece})
                computing += time.monotonic() - since
                # A window counts once there are as many bytes: all are whole at the end only.
                windows = (made + piece.nbytes) // per_window - made // per_window
                made += piece.nbytes
                on_windows(windows, piece.nbytes)
                yield piece

    declared = declared_of(plans, shard)
    record = write_pieces(root, shard.name, declared, pieces(), METADATA)
    return Made(shard, record, computing, time.monotonic() - began)


def slower_body(source: WindowSource, plans: Mapping[str, TensorPlan]) -> str | None:
    """What people are told where rows are combined by torch, for want of a C compiler."""
    if source.backend is None or source.tables is None or "q" not in plans:
        return None
    body, reason = source.backend.combined_by(source.tables, plans["q"].dtype)
    if body != "torch-cpu":
        return None
    return f"q, k and v are combined by torch, the same but slower than by C: {reason}"


def first_step(source: WindowSource) -> int:
    """Windows that compute_whole computes at once, where the device has room for them."""
    return max(1, STEP_TOKENS // source.context_length)


def compute_whole(
    source: WindowSource,
    plans: Mapping[str, TensorPlan],
    shard: Shard,
    tensors: Mapping[str, Tensor],
    staging: Staging,
    step: int,
    on_windows: OnWindows,
    note: Callable[[str], None],
) -> tuple[Wait, int]:
    """Compute a whole shard into tensors of the host, `step` windows at a time.

    Returns what waits until all of it has arrived there, and the step that the device had room for.

    Raises:
        DeviceError: if it has none for a single window.
    """
    per_window = window_bytes(dict(plans))
    arrived: Wait = lambda: None  # noqa: E731
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
            if step == first_step(source):
                note("the GPU's memory ran out: computing fewer windows at once")
            step //= 2
        else:
            arrived = staging.send(host)
            on_windows(until - at, (until - at) * per_window)
            at = until
            continue
        # Not before the error is gone, whose traceback holds the buffers.
        staging.close()
        torch.cuda.empty_cache()
    return arrived, step


def make_whole(
    root: Path,
    source: WindowSource,
    plans: Mapping[str, TensorPlan],
    shard: Shard,
    note: Callable[[str], None],
) -> Made:
    """Compute a whole shard, and then write it.

    Raises:
        DeviceError: as compute_whole.
        ExportError: if it cannot be written.
    """
    began = time.monotonic()
    device = source.backend.device if source.backend else torch.device("cpu")
    tensors = allocate(plans, shard.windows, pinned=device.type == "cuda")
    with closing(staging_for(device)) as staging:
        arrived, _ = compute_whole(
            source, plans, shard, tensors, staging, first_step(source), lambda *_: None, note
        )
        arrived()
    computing = time.monotonic() - began
    record = write_whole(root, shard, tensors)
    return Made(shard, record, computing, time.monotonic() - began)


def write_whole(root: Path, shard: Shard, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write the tensors of a shard.

    Raises:
        ExportError: if the file cannot be written.
    """
    return write_tensors(root, shard.name, tensors, METADATA)


def declared_of(plans: Mapping[str, TensorPlan], shard: Shard) -> dict[str, Shape]:
    """dtype and shape of each tensor of a shard."""
    return {name: (plan.dtype, (shard.windows, *plan.shape)) for name, plan in plans.items()}


def shard_entry(
    record: FileRecord | FileEntry, plans: Mapping[str, TensorPlan], shard: Shard
) -> FileEntry:
    """The manifest's entry of a shard."""
    return entry_of(record, "windows", declared_of(plans, shard), shard.first, shard.windows)


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
