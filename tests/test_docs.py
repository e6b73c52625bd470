"""What the documents say is so: the README's commands run, the reference is up to date."""

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

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of the README's shell blocks, continued lines joined, comments left out."""
    text = "".join(block for language, block in BLOCKS if language == "sh").replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_command_of_the_readme_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("vocab"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "qkvmill":
            if arguments[0] == "bench":
                arguments += ["--rounds", "1", "--tokens", "1024"]
            result = qkvmill(*arguments)
            assert result.status == 0, f"{line}: {result.stderr}"
        elif program in ("(cd", "cmp", "zcat"):
            shell = line.replace("| qkvmill", f"| {shlex.quote(sys.executable)} -m jobs")
            subprocess.run(shell, shell=True, check=True, capture_output=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        elif program == "python" and arguments[0].startswith("examples/"):
            done = subprocess.run(
                [sys.executable, *arguments], check=True, capture_output=True, text=True
            )
            for difference in re.findall(r"largest difference.* ([\d.e+-]+)$", done.stdout, re.M):
                assert float(difference) < 1e-5
        else:
            assert program in ("make", "python", "."), line
            continue
        ran += 1
    assert ran >= 12
    for language, block in BLOCKS:
        if language == "python":
            by_hand = block.startswith("import glob")
            done = subprocess.run(
                [sys.executable, "-c", block],
                cwd="out/compact" if by_hand else ".",
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            if by_hand:
                assert tuple(block.splitlines()) == read_manifest(Path("out/compact")).expand
                names: dict[str, Any] = {}
                monkeypatch.chdir("out/compact")
                exec(block, names)
                monkeypatch.chdir(tmp_path)
                window = open_export("out/sample")[0]
                assert all(torch.equal(names[name], window[name]) for name in "qkv")
    assert (tmp_path / "out/expanded/SHA256SUMS").read_text().splitlines()[1:] == (
        tmp_path / "out/sample/SHA256SUMS"
    ).read_text().splitlines()[1:]


def test_the_figures_of_the_sample_are_right(tmp_path: Path) -> None:
    options = ("--context-length", 256, "--d-model", 64, "--heads", 4)
    plan = qkvmill("plan", DATA / "corpus", "--out", tmp_path / "out", *options, "--json").json
    sentence = f"{plan['documents']} documents and {plan['tokens']:,} tokens of cl100k_base"
    assert f"{sentence}, and becomes {plan['windows']} windows" in README


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    script = ROOT / "docs" / "generate_cli.py"
    made = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_the_tree_of_the_readme_names_the_files_that_are_there() -> None:
    (tree,) = [block for _, block in BLOCKS if "kernels/" in block and "exporters/" in block]
    named = set(re.findall(r"^ {2,4}(\w+\.py)", tree, re.MULTILINE))
    packages = ("jobs", "exporters", "kernels")
    there = {p.name for folder in packages for p in (ROOT / folder).rglob("*.py")}
    assert named == there - {"__init__.py", "__main__.py"}


def test_links_of_the_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), DATA / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
