"""What a journal says after anything that can happen to it."""

import errno
import json
import os
import threading
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from exporters import disk, journal
from exporters.errors import ExportError
from exporters.journal import JOURNAL, differences, mend_journal, read_journal, start_journal
from exporters.manifest import FileEntry

JOB = {"options": {"seed": 0}}
A, B = "a.safetensors", "b.safetensors"


def entry(name: str) -> FileEntry:
    tensors = {"q": {"dtype": "float32", "shape": [1, 2]}}
    return FileEntry(
        name=name, kind="windows", bytes=3, sha256="ab", first=0, count=1, tensors=tensors
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    journal = start_journal(tmp_path, JOB)
    journal.add_file(entry(A), ["x", 1])
    journal.add_note("tokens", {"parts": 2})
    journal.add_file(entry(B))
    return tmp_path


def names(root: Path) -> list[str] | None:
    journal = read_journal(root)
    return None if journal is None else list(journal.files)


def test_what_was_added_is_read(root: Path) -> None:
    journal = read_journal(root)
    assert journal is not None
    assert journal.fingerprint == JOB
    assert journal.files == {name: entry(name) for name in (A, B)}
    assert journal.details == {A: ["x", 1], B: None}
    assert journal.notes == {"tokens": {"parts": 2}}


def test_the_last_line_of_a_name_counts(root: Path) -> None:
    journal = read_journal(root)
    assert journal is not None
    journal.forget(A)
    journal.add_file(entry(A), "again")
    found = read_journal(root)
    assert found is not None
    assert found.details == {B: None, A: "again"}


def test_every_prefix_is_read_up_to_its_last_whole_line_and_can_be_added_to(root: Path) -> None:
    data = (root / JOURNAL).read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        (root / JOURNAL).write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        assert names(root) == (None, [], [A], [A], [A, B])[whole]
        if whole:
            mend_journal(root)
            journal = read_journal(root)
            assert journal is not None
            journal.add_file(entry("c.safetensors"))
            assert names(root) == [*journal.files]


def test_no_flipped_bit_adds_or_changes_a_file(root: Path) -> None:
    data = bytearray((root / JOURNAL).read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        (root / JOURNAL).write_bytes(data)
        journal = read_journal(root)
        if journal is not None:
            assert journal.fingerprint == JOB
            assert all(found == entry(name) for name, found in journal.files.items())
            assert len(journal.files) < 2
        data[bit // 8] ^= 1 << bit % 8


def test_a_journal_that_says_no_sense_is_none(root: Path) -> None:
    good = asdict(entry(A))
    deep = json.loads("[" * 900 + "]" * 900)
    lines: list[Any] = [
        {"file": good | change, "details": None}
        for change in (
            {"name": 5}, {"name": "../a.safetensors"}, {"bytes": "3"}, {"first": None},
            {"count": True}, {"tensors": None}, {"tensors": {"q": 1}}, {"kind": ["windows"]},
            {"more": 1},
        )
    ]  # fmt: skip
    for line in (*lines, {"file": good}, {"note": ["x"], "value": 1}, {"note": "x"}, [], 5, None):
        start_journal(root, JOB)
        with (root / JOURNAL).open("ab") as file:
            file.write(journal.line_of(line))
        assert names(root) is None, line
    for fingerprint in (None, 1, [1], deep):
        start_journal(root, fingerprint)  # type: ignore[arg-type]
        assert names(root) is None


def test_a_link_is_no_journal(root: Path) -> None:
    (root / JOURNAL).rename(root / "elsewhere")
    (root / JOURNAL).symlink_to(root / "elsewhere")
    assert read_journal(root) is None


def test_threads_add_whole_lines(tmp_path: Path) -> None:
    journal = start_journal(tmp_path, JOB)

    def add(part: int) -> None:
        for number in range(50):
            journal.add_file(entry(f"{part}-{number}.safetensors"))

    threads = [threading.Thread(target=add, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(tmp_path) or []) == 200


def test_differences_name_nested_fields_with_both_values() -> None:
    kept = {"options": {"seed": 0, "gone": True}, "files": ["a"] * 100, "compute": None}
    now = {"options": {"seed": 1}, "files": ["a"], "compute": None}
    assert differences(kept, kept) == []
    found = differences(kept, now)
    assert found[0].startswith('files was ["a", "a", ')
    assert found[0].endswith('..., now ["a"]')
    assert len(found[0]) < 120
    assert found[1:] == ["options.gone was true, now null", "options.seed was 0, now 1"]


def test_nothing_is_added_after_a_line_that_may_be_torn(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = read_journal(root)
    assert journal is not None
    real = disk.write

    def half(file: FileIO, data: memoryview) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:-20])

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write", half)
        with pytest.raises(ExportError, match="No space left"):
            journal.add_file(entry("c.safetensors"))
    with pytest.raises(ExportError, match="No space left"):
        journal.add_file(entry("d.safetensors"))
    assert names(root) == [A, B] == list(journal.files)


def test_a_journal_that_is_begun_anew_names_nothing(root: Path) -> None:
    journal = read_journal(root)
    assert journal is not None
    journal.restart()
    again = read_journal(root)
    assert again is not None
    for found in (journal, again):
        assert (found.fingerprint, found.files, found.details, found.notes) == (JOB, {}, {}, {})
