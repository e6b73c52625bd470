"""A whole job against the notebook's way scaled up, start-up, hashes and syncs included.

    python benchmarks/end_to_end.py [--scratch /dev/shm] [--tokens 500000] [--d-model 64 768]

Both run turn by turn as commands of their own on the same text, the sources of Python's standard
library, into a folder of --scratch (a tmpfs keeps the disk out of it). Then the shards of ours are
written and hashed once more from memory, as many at once as the job makes: the least that the
window stage could take, and with an import of torch before it the least of a job that computes
nothing. Prints the seconds of each round, medians, and ratios; needs three times the export's size
in --scratch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from exporters.shards import write_tensors
from jobs.tokenizer import tiktoken_encoding

ROOT = Path(__file__).resolve().parent.parent


def standard_library_text(tokens: int) -> str:
    """Python sources, file after file, of at least so many tokens of cl100k_base."""
    encoding, _ = tiktoken_encoding("cl100k_base")
    texts: list[str] = []
    count = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        texts.append(path.read_text("utf-8", errors="replace"))
        count += len(encoding.encode_ordinary(texts[-1]))
        if count >= tokens:
            return "".join(texts)
    raise SystemExit(f"Error: the standard library has {count} tokens only; give fewer --tokens")


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return time.perf_counter() - began


def rewrite_seconds(export: Path, folder: Path) -> float:
    """Seconds that writing, hashing and syncing the shards takes, from memory."""
    seconds = 0.0
    folder.mkdir()
    at_once = torch.get_num_threads()
    # Taken once: memory given back would be at hand for the files.
    held: list[dict[str, Tensor]] = [{} for _ in range(at_once)]

    def load(path: Path, place: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                place.setdefault(name, torch.empty_like(tensor))
                tensors[name] = place[name][: len(tensor)].copy_(tensor)
        return tensors

    paths = sorted((export / "shards").iterdir())
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, len(paths), at_once):
            some = paths[first : first + at_once]
            loaded = [load(path, place) for path, place in zip(some, held, strict=False)]
            began = time.perf_counter()
            written = [
                pool.submit(write_tensors, folder, path.name, tensors, ("format", "pt"))
                for path, tensors in zip(some, loaded, strict=True)
            ]
            for future in written:
                future.result()
            seconds += time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def median_ratio(seconds: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def compare(text: Path, d_model: int, rounds: int, scratch: Path) -> dict[str, object]:
    """Medians over rounds, each of which runs both ways and writes ours again from memory."""
    width = ["--d-model", str(d_model)]
    export, other, again = scratch / "ours", scratch / "theirs", scratch / "again"

    def run(out: Path) -> list[str]:
        command = [sys.executable, "-m", "jobs", "run", str(text), "--out", str(out), "--quiet"]
        return [*command, *width, "--heads", str(max(1, d_model // 64)), "--device", "cpu"]

    seconds_of(run(export))
    manifest = json.loads((export / "manifest.json").read_text())
    ours: list[float] = []
    theirs: list[float] = []
    stage: list[float] = []
    rewritten: list[float] = []
    least: list[float] = []
    for _ in range(rounds):
        script = str(ROOT / "benchmarks" / "notebook_way.py")
        theirs.append(seconds_of([sys.executable, script, str(text), str(other), *width]))
        shutil.rmtree(other)
        ours.append(seconds_of(run(other)))
        record = json.loads((other / "run.json").read_text())["seconds"]
        stage.append(record["windows"])
        shutil.rmtree(other)
        # As long after memory was freed as our windows began: a virtual machine takes it back.
        time.sleep(ours[-1] - stage[-1])
        rewritten.append(rewrite_seconds(export, again))
        least.append(rewritten[-1] + seconds_of([sys.executable, "-c", "import torch"]))
        print(
            f"d {d_model}: notebook's way {theirs[-1]:.2f} s, ours {ours[-1]:.2f} s, "
            f"window stage {stage[-1]:.2f} s, its bytes from memory {rewritten[-1]:.2f} s, "
            f"with torch's import {least[-1]:.2f} s "
            f"({', '.join(f'{name} {value:.2f}' for name, value in record.items())})",
            flush=True,
        )
    shutil.rmtree(export)
    return {
        "d_model": d_model,
        "tokens": manifest["tokens"]["count"],
        "distinct_tokens": manifest["tokens"]["distinct"],
        "method": manifest["compute"]["method"],
        "notebook_seconds": statistics.median(theirs),
        "our_seconds": statistics.median(ours),
        "times_faster": median_ratio(theirs, ours),
        "writing_alone_times_faster": median_ratio(theirs, least),
        "window_stage_to_rewriting": median_ratio(stage, rewritten),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--d-model", type=int, nargs="+", default=[64, 768])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="qkvmill-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(standard_library_text(arguments.tokens), "utf-8")
        for d_model in arguments.d_model:
            found = compare(text, d_model, arguments.rounds, Path(folder))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
