"""windows.safetensors: where the windows of an export begin, where no stride tells."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from exporters.contents import starts_tensors
from exporters.folder import Work
from exporters.manifest import FileEntry
from exporters.shards import file_order, write_pieces
from exporters.spans import list_windows
from exporters.tokens import TokenStream
from exporters.windows import STARTS, WindowPlan, open_starts, spans_of
from jobs.compute import MADE_AGAIN
from jobs.config import JobConfig
from jobs.progress import Reporter
from jobs.shards import METADATA, entry_of
from jobs.windows import rule_of


def write_starts(
    work: Work, config: JobConfig, windows: WindowPlan, stream: TokenStream, reporter: Reporter
) -> tuple[WindowPlan, list[FileEntry]]:
    """Write where windows begin, unless their stride tells it or the shards of random ones do.

    What is written is never in memory as a whole, but for random starts, which are. Returns
    windows that are read from the file, and its entry.

    Raises:
        ExportError: if the file cannot be written.
    """
    if not windows.split and (windows.random_starts is None or config.artifact == "full"):
        return windows, []
    plans = starts_tensors(padded=windows.padding is not None)
    declared = {name: (plan.dtype, (windows.count,)) for name, plan in plans.items()}
    kept = work.kept(STARTS)
    if kept and kept != entry_of(kept, "starts", declared, 0, windows.count):
        work.journal.forget(STARTS)
        reporter.note(f"{work.out / STARTS} {MADE_AGAIN}")
    if work.kept(STARTS) is None:
        amount = windows.count * len(declared)
        with reporter.stage("starts", amount, "starts") as advance:

            def pieces() -> Iterator[Tensor]:
                for name in file_order({name: plan.dtype for name, plan in plans.items()}):
                    for piece in _pieces(config, windows, stream, name):
                        advance(len(piece))
                        yield piece

            record = write_pieces(work.root, STARTS, declared, pieces(), METADATA)
        work.journal.add_file(entry_of(record, "starts", declared, 0, windows.count))
    if windows.random_starts is None:
        windows = replace(windows, listed=open_starts(work.root / STARTS))
    return windows, [work.journal.files[STARTS]]


def _pieces(
    config: JobConfig, windows: WindowPlan, stream: TokenStream, name: str
) -> Iterator[Tensor]:
    """The values of one of the tensors, in order."""
    if windows.random_starts is not None:
        yield windows.random_starts
        return
    for places in list_windows(spans_of(stream, split=windows.split), rule_of(config)):
        yield places.start if name == "window_start" else places.pairs.to(torch.int32)
