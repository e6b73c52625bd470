"""Rates that benchmarks/schedule.py takes for a core and for the driver of a cluster.

    python benchmarks/rates.py [--scratch /dev/shm] [--rounds 5]

On one core: shards of 512 MB hashed and written; a text of 300 MB read, cut, hashed and pickled as
the driver does it; and lines of a journal, each synced. Prints medians. What a core tokenizes is
told by benchmarks/tokenising.py, what it combines by `qkvmill bench`.
"""

import argparse
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenising import write_text

from exporters.journal import start_journal
from exporters.manifest import FileEntry
from exporters.shards import write_tensors
from jobs.config import JobConfig
from jobs.cutting import cuts, read_settings, tasks
from jobs.done import Done
from jobs.inputs.files import find_files
from jobs.inputs.read import Reader
from jobs.tokenizer import load_encoding

SHARD_BYTES = 512_000_000
TEXT_BYTES = 300_000_000
LINES = 300
ENTRY = FileEntry(
    name="shards/shard-00001-of-00012.safetensors",
    kind="windows",
    bytes=SHARD_BYTES,
    sha256="0" * 64,
    first=0,
    count=48,
    tensors={
        name: {"dtype": "float32", "shape": [48, 12, 1024, 64]}
        for name in ("q", "k", "v", "input_ids", "target_ids", "document_ids", "window_start")
    },
)


def shard_rate(folder: Path, values: torch.Tensor) -> float:
    """MB a second, hashed and written."""
    began = time.perf_counter()
    write_tensors(folder, "shard.safetensors", {"q": values})
    return values.nbytes / 1e6 / (time.perf_counter() - began)


def reading_rate(folder: Path) -> float:
    """MB a second, from a file to what is sent to workers."""
    config = JobConfig(corpus=(str(folder / "text.txt"),), out=folder / "out")
    corpus = find_files(config.corpus, out=config.local_out, format=None, skip_empty=False)
    reader = Reader(read_settings(config, load_encoding("cl100k_base")), print, None)
    size = 0
    began = time.perf_counter()
    for task in tasks(cuts(corpus, reader, Done(), lambda _: None)):
        segments = [cut.segment for cut in task if cut.segment]
        size += len(pickle.dumps(segments, pickle.HIGHEST_PROTOCOL))
    return size / 1e6 / (time.perf_counter() - began)


def journal_rate(folder: Path) -> float:
    """Lines a second."""
    (folder / ".work").mkdir(exist_ok=True)
    journal = start_journal(folder, {})
    began = time.perf_counter()
    for _ in range(LINES):
        journal.add_file(ENTRY)
    return LINES / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    values = torch.randn(SHARD_BYTES // 4)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        write_text(folder / "text.txt", TEXT_BYTES)
        ways: dict[str, Callable[[], float]] = {
            "MB/s hashed and written": lambda: shard_rate(folder, values),
            "MB/s of text read by the driver": lambda: reading_rate(folder),
            "lines/s of the journal": lambda: journal_rate(folder),
        }
        for what, rate in ways.items():
            print(f"{statistics.median(rate() for _ in range(options.rounds)):8,.0f} {what}")


if __name__ == "__main__":
    main()
