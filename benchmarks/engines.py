"""The same job by the engine of this machine and by Ray on this machine: seconds, and their ratio.

    python benchmarks/engines.py [--megabytes 500] [--gigabytes 8] [--scratch /dev/shm] [--rounds 3]

A Ray cluster of one node is started first and not timed. Each round times, turn by turn, the whole
command by both engines, imports and, with Ray, the start of its workers included, with as many
workers as there are cores, and checks that both wrote the same bytes. The text is the sources of
Python's standard library again and again; the layer has a width of 768; so many windows are
exported that their shards take the gigabytes. Prints medians and the ratio.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster
from tokenising import write_text

ROOT = Path(__file__).resolve().parent.parent
WINDOW_BYTES = 1024 * (3 * 768 * 4 + 12)  # q, k, v and three ids of each token
BATCH = 8


def job_seconds(command: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a whole command, and of its stages."""
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT)
    whole = time.perf_counter() - began
    stages = json.loads((out / "run.json").read_text())["seconds"]
    return whole, {name: stages[name] for name in ("tokenise", "windows")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    batches = max(1, round(options.gigabytes * 1e9 / WINDOW_BYTES / BATCH))
    took: dict[str, list[float]] = {}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False}
    )
    try:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            text, out = Path(folder, "text.txt"), Path(folder, "out")
            write_text(text, options.megabytes * 10**6)
            job = [sys.executable, "-m", "jobs", "run", str(text), "--quiet", "--device", "cpu",
                   "--batches", str(batches), "--batch-size", str(BATCH),
                   "--workers", str(cores)]  # fmt: skip
            engines = {
                "local": job,
                "ray": [*job, "--engine", "ray", "--ray-address", cluster.address],
            }
            for turn in range(options.rounds):
                sums = set()
                for name, command in engines.items():
                    whole, stages = job_seconds(command, out)
                    sums.add((out / "SHA256SUMS").read_text())
                    shutil.rmtree(out)
                    for part, seconds in {"whole command": whole, **stages}.items():
                        took.setdefault(f"{name}: {part}", []).append(seconds)
                    print(f"round {turn + 1}, {name}: {whole:.1f} s", flush=True)
                if len(sums) > 1:
                    sys.exit("the engines wrote different bytes")
    finally:
        cluster.shutdown()
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, seconds in medians.items():
        print(f"{name:22} {seconds:7.1f} s")
    for part in ("whole command", "tokenise", "windows"):
        ratio = medians[f"ray: {part}"] / medians[f"local: {part}"]
        print(f"Ray takes {ratio:.2f} times as long as the local engine: {part}")


if __name__ == "__main__":
    main()
