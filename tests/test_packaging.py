"""The package that pip makes: it holds the vocabularies and runs from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import DATA, NOTEBOOK, ROOT


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_our_packages_and_all_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in DATA.rglob("*"):
        if path.is_file():
            assert path.relative_to(ROOT).as_posix() in names
    for name in ("page.html", "page.css", "page.js", "licences.txt"):
        assert f"jobs/report/{name}" in names
    assert {"kernels/combine.c", "kernels/squares.c"} <= names
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"jobs", "kernels", "exporters", "data"}


def test_an_installed_copy_runs_from_a_folder_with_a_space(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "a site"
    pip("install", "--no-deps", "--target", site, wheel)
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in python("-c", "import jobs; print(jobs.__file__)")
    small = ("--context-length", 16, "--d-model", 32, "--heads", 4)
    python("-m", "jobs", "run", NOTEBOOK, "--out", "o u t", *small)
    python(site / "bin" / "qkvmill", "verify", "o u t")


def test_versions_agree() -> None:
    script = "from importlib.metadata import version; print(version('qkvmill'))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f'version = "{done.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text()


def test_everything_that_is_installed_is_pinned() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format", "freeze", "--exclude-editable"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if sys.prefix != str(ROOT / ".venv"):
        pytest.skip("only the environment that make sets up is pinned")
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in listed.split()}
    text = (ROOT / "constraints.txt").read_text()
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in text.splitlines()
        if "==" in line
    }
    foreign = {name for name in installed - pinned if not name.startswith(("nvidia-", "cuda-"))}
    assert foreign <= {"pip", "qkvmill"}


@pytest.mark.skipif(sys.prefix != str(ROOT / ".venv"), reason="only where make set up .venv")
def test_make_demo_runs_verifies_and_says_how_to_load() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all as they were written" in done.stdout
    assert "load_file" in done.stdout
    assert "attention over the first: [1, 4, 256, 16]" in done.stdout
