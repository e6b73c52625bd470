"""The most memory that a job and its processes hold together, as the corpus grows.

    python benchmarks/memory.py [--megabytes 100 1000] [--line 300] [--scratch /tmp]

Runs `run --export tokens` with a process for each core over text of each size, and over one line
of --line MB, and sums the proportional set sizes (PSS, shared pages counted once) of the job and
all that it started, twenty times a second. The text is the sources of Python's standard library
again and again; the line is the same with spaces for line ends.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_text(path: Path, size: int, *, one_line: bool) -> None:
    """Write about `size` bytes of Python sources."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    with path.open("wb") as file:
        while file.tell() < size:
            for source in sources:
                text = source.read_bytes().decode("utf-8", "ignore").replace("\0", "")
                file.write((" ".join(text.split()) + " " if one_line else text).encode())
                if file.tell() >= size:
                    break


def family(root: int) -> list[int]:
    """A process and all that it started, and they did."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def held(root: int) -> int:
    """Bytes that a process and all that it started hold."""
    total = 0
    for process in family(root):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * sum(int(line.split()[1]) for line in rollup.splitlines()
                            if line.startswith("Pss:"))  # fmt: skip
    return total


def peak(text: Path, out: Path, workers: int) -> tuple[int, float]:
    """The most bytes held at once by a job over a text, and its seconds."""
    command = [sys.executable, "-m", "jobs", "run", str(text), "--out", str(out), "--quiet",
               "--export", "tokens", "--workers", str(workers), "--overwrite"]  # fmt: skip
    began = time.perf_counter()
    most = 0
    with subprocess.Popen(command, cwd=ROOT) as job:
        while job.poll() is None:
            most = max(most, held(job.pid))
            time.sleep(0.05)
    if job.returncode:
        raise SystemExit(f"Error: the job ended with status {job.returncode}")
    return most, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--line", type=int, default=300)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    first = 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        text, out = Path(folder, "text.txt"), Path(folder, "out")
        cases = [(size, False) for size in options.megabytes] + [(options.line, True)]
        for size, one_line in cases:
            write_text(text, size * 10**6, one_line=one_line)
            most, seconds = peak(text, out, workers)
            first = first or most
            kind = "one line" if one_line else "text"
            print(f"{size:6} MB, {kind:8} {most / 1e6:7.1f} MB at most, {most / first:.3f} of the "
                  f"first; {seconds:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
