"""The benchmarks run, at sizes that measure nothing, and print what their pages quote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SMALL = {
    "end_to_end": ("--tokens", "20000", "--d-model", "64", "--rounds", "1"),
    "engines": ("--megabytes", "1", "--gigabytes", "0.1", "--rounds", "1"),
    "group_texts": ("--megabytes", "1"),
    "memory": ("--megabytes", "1", "2", "--line", "1"),
    "rates": ("--rounds", "1"),
    "tokenising": ("--megabytes", "1", "--rounds", "1"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    if name == "group_texts":
        pytest.importorskip("datasets")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *SMALL[name], "--scratch",
         str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)


def test_every_benchmark_of_the_pages_is_there_and_run() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"python benchmarks/(\w+)\.py", page.read_text("utf-8"))
    }
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    # The last two have tests of their own; the notebook's way is what end_to_end times.
    assert there == {*SMALL, "schedule", "kernel_resources", "notebook_way"}
    assert named == there - {"notebook_way"}
