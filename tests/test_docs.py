"""What the documents say is so: the README's commands run, the reference is up to date."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exporters.manifest import read_manifest
from exporters.reading import open_export
from tests.helpers import DATA, ROOT, qkvmill

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    path.name: path
    for path in (ROOT / "README.md", DOCS / "corpora.md", DOCS / "models.md", DOCS / "methods.md",
                 DOCS / "stopping.md")
}  # fmt: skip
"""The pages whose commands are run as they stand; of docs/scale.md and docs/figures.md other tests
run what one machine and a minute can."""

BY_MAKE = ("make", ".")
"""What sets up and tests, within which these tests run."""


def blocks(page: str) -> list[tuple[str, str]]:
    """The languages and texts of the fenced blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Lines of a page's shell blocks, continued lines joined, comments left out."""
    shell = "".join(block for language, block in blocks(page) if language == "sh")
    lines = [line.partition("  #")[0].strip() for line in shell.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_command(line: str) -> None:
    """Run a line of a page as its reader would, in the current folder; it must succeed."""
    program, *arguments = shlex.split(line)
    if program == "qkvmill":
        if arguments[0] == "bench":
            arguments += ["--rounds", "1", "--tokens", "1024"]
        result = qkvmill(*arguments)
        assert result.status == 0, f"{line}: {result.stderr}"
    elif program in ("(cd", "cmp", "zcat"):
        shell = line.replace("| qkvmill", f"| {shlex.quote(sys.executable)} -m jobs")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(shell, shell=True, check=True, capture_output=True, env=environment)
    else:
        assert program == "python", line
        assert arguments[0].startswith("examples/"), line
        done = run_python(*arguments)
        for difference in re.findall(r"largest difference.* ([\d.e+-]+)$", done, re.M):
            assert float(difference) < 1e-5, line


def run_python(*arguments: str, folder: str = ".") -> str:
    """What Python prints, with this project on its path; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments[0]}: {done.stderr}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with what the pages' commands find in a clone."""
    shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("vocab"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs_in_order(name: str, checkout: Path) -> None:
    page = PAGES[name].read_text("utf-8")
    for line in commands(page):
        if not line.startswith(BY_MAKE):
            run_command(line)
    if name != "README.md":
        return
    for language, block in blocks(page):
        if language != "python":
            continue
        by_hand = block.startswith("import glob")
        run_python("-c", block, folder="out/compact" if by_hand else ".")
        if by_hand:
            assert tuple(block.splitlines()) == read_manifest(Path("out/compact")).expand
            names: dict[str, Any] = {}
            with contextlib.chdir("out/compact"):
                exec(block, names)
            window = open_export("out/sample")[0]
            assert all(torch.equal(names[name], window[name]) for name in "qkv")
    expanded, sample = (
        (checkout / "out" / name / "SHA256SUMS").read_text().splitlines()[1:]
        for name in ("expanded", "sample")
    )
    assert expanded == sample


def test_make_demo_loads_tensors(checkout: Path) -> None:
    shutil.copy(ROOT / "Makefile", checkout)
    (checkout / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        # A make inside a make, as in `make test`, would also name its folder.
        ["make", "--no-print-directory", "--old-file=.venv/installed", "demo"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("attention over the first: [1, 4, 256, 16]\n")


def test_the_figures_of_the_sample_are_right(tmp_path: Path) -> None:
    options = ("--context-length", 256, "--d-model", 64, "--heads", 4)
    plan = qkvmill("plan", DATA / "corpus", "--out", tmp_path / "out", *options, "--json").json
    sentence = f"{plan['documents']} documents and {plan['tokens']:,} tokens of cl100k_base"
    assert f"{sentence}, and becomes {plan['windows']} windows" in README


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands(README) if line.startswith("make ")}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    script = ROOT / "docs" / "generate_cli.py"
    made = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_the_tree_of_the_readme_names_the_files_that_are_there() -> None:
    (tree,) = [
        block for _, block in blocks(README) if "kernels/" in block and "exporters/" in block
    ]
    named = set(re.findall(r"^ {2,4}(\w+\.py)", tree, re.MULTILINE))
    packages = ("jobs", "exporters", "kernels")
    there = {p.name for folder in packages for p in (ROOT / folder).rglob("*.py")}
    assert named == there - {"__init__.py", "__main__.py"}


def test_links_of_the_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), DATA / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
