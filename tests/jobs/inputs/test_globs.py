"""Held against the shell, which knows no links and no hidden names that are not asked for."""

import subprocess
from pathlib import Path

import pytest

from jobs.inputs.globs import matches

FILES = (
    "a.txt", "b.txt", "ab.md", "c/a.txt", "c/d/a.txt", "c/d/e/b.txt", ".h.txt", "c/.i/a.txt",
    "d1/x/q.txt", "d2/x/q.txt", "[z].txt", "d1/.dot/a.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


@pytest.mark.parametrize(
    "pattern",
    [
        "*.txt", "?.txt", "[ab].txt", "[!a].txt", "*", "*/*", "c/*", "*/a.txt", "d?/x/*",
        "d[12]/*/q.txt", "**/*.txt", "**/a.txt", "c/**/*.txt", "**/d/**/b.txt", "**/**/a.txt",
        ".*.txt", "*/.[!.]*/a.txt", "none*", "a.txt/*", "*/none", "[[]z].txt", "c/../[a]*.txt",
    ],
)  # fmt: skip
def test_a_pattern_matches_what_the_shell_matches(tree: Path, pattern: str) -> None:
    listed = subprocess.run(
        ["bash", "-c", f"shopt -s globstar nullglob; for f in {pattern}; do echo \"$f\"; done"],
        cwd=tree, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    expected = {(tree / name).parts for name in listed.splitlines()}
    found = [path.parts for path in matches(tree / pattern, None)]
    assert sorted(expected) == found


def test_stars_at_the_end_match_every_file_that_is_not_hidden(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in matches(tree / "**", None)}
    hidden = (".h.txt", "c/.i/a.txt", "d1/.dot/a.txt")
    assert set(FILES) - set(hidden) == found


def test_links_to_folders_are_not_followed_by_stars(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.txt").write_text("x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert matches(tmp_path / "**/x.txt", None) == [tmp_path / "a/x.txt"]
    assert matches(tmp_path / "*/loop/a/*.txt", None) == [tmp_path / "a/loop/a/x.txt"]
