"""The token stage against bare processes that run tiktoken over the same text.

    python benchmarks/tokenising.py [--megabytes 200] [--scratch /tmp] [--rounds 3]

Each round times, turn by turn: as many bare processes as there are cores, each of which runs
encode_to_numpy over its share of the text, from when all are ready until the last is done; and the
jobs `run --export tokens` and `run --artifact compact` with a process for each core, and the first
with one. Of the jobs both the token stage (from run.json) and the whole command count. The text is
the sources of Python's standard library again and again. Prints medians and ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

from jobs.tokenizer import tiktoken_encoding

ROOT = Path(__file__).resolve().parent.parent
STRETCH = 1 << 20  # characters that a bare process encodes at once


def write_text(path: Path, size: int) -> None:
    """Write about `size` bytes of Python sources."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    with path.open("wb") as file:
        while file.tell() < size:
            for source in sources:
                file.write(source.read_bytes().decode("utf-8", "ignore").replace("\0", "").encode())
                if file.tell() >= size:
                    break


def bare(path: Path, start: int, stop: int, ready: Barrier) -> None:
    """Encode a share of a file, as anyone would."""
    encoding, _ = tiktoken_encoding("cl100k_base")
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(stop - start).decode("utf-8", "ignore")
    encoding.encode_to_numpy("ready", disallowed_special=())
    ready.wait()
    for at in range(0, len(text), STRETCH):
        encoding.encode_to_numpy(text[at : at + STRETCH], disallowed_special=())
    ready.wait()


def bare_seconds(path: Path, processes: int) -> float:
    """Seconds that so many bare processes take for a file."""
    context = get_context("spawn")
    ready = context.Barrier(processes + 1)
    cuts = [path.stat().st_size * index // processes for index in range(processes + 1)]
    started = [
        context.Process(target=bare, args=(path, start, stop, ready))
        for start, stop in pairwise(cuts)
    ]
    for process in started:
        process.start()
    ready.wait()
    began = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - began
    for process in started:
        process.join()
    return seconds


def job_seconds(path: Path, out: Path, *options: str) -> tuple[float, float]:
    """Seconds of a job's token stage and of the whole command."""
    command = [sys.executable, "-m", "jobs", "run", str(path), "--out", str(out), "--quiet"]
    command += ["--overwrite", *options]
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT)
    whole = time.perf_counter() - began
    stages = json.loads((out / "run.json").read_text())["seconds"]
    return stages["tokenise"], whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    layer = ["--d-model", "64", "--heads", "1", "--device", "cpu"]
    jobs = {
        "tokens": ["--export", "tokens", "--workers", str(cores)],
        "compact": ["--artifact", "compact", *layer, "--workers", str(cores)],
        "tokens, 1 worker": ["--export", "tokens", "--workers", "1"],
    }
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path, out = Path(folder, "text.txt"), Path(folder, "out")
        write_text(path, options.megabytes * 10**6)
        size = path.stat().st_size / 1e6
        for turn in range(options.rounds):
            seconds = {f"{cores} bare processes": bare_seconds(path, cores)}
            for name, extra in jobs.items():
                stage, whole = job_seconds(path, out, *extra)
                seconds |= {f"{name}: token stage": stage, f"{name}: whole command": whole}
            for name, value in seconds.items():
                took.setdefault(name, []).append(value)
            print(f"round {turn + 1}: {seconds}", flush=True)
    medians = {name: statistics.median(values) for name, values in took.items()}
    first = medians[f"{cores} bare processes"]
    print(f"\n{size:.0f} MB, {cores} cores; medians of {options.rounds} rounds")
    for name, value in medians.items():
        print(f"{name:32} {value:7.2f} s {size / value:7.1f} MB/s  {first / value:5.2f} of bare")
    ratio = medians["tokens, 1 worker: token stage"] / medians["tokens: token stage"]
    print(f"token stage, {cores} workers against 1: {ratio:.2f} times")


if __name__ == "__main__":
    main()
