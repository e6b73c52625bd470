import hashlib
import os
from pathlib import Path

import pytest

from exporters.files import FileRecord, sha256_of, whole_file, write_text


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    with whole_file(tmp_path, "a/b.txt") as part:
        part.write_bytes(b"text")
        assert part.name == "b.txt.part"
        assert not (tmp_path / "a/b.txt").exists()
    assert (tmp_path / "a/b.txt").read_bytes() == b"text"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    write_text(tmp_path, "b.txt", "old")

    def fail() -> None:
        with whole_file(tmp_path, "b.txt") as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "b.txt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path, "b.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "b.txt").stat().st_mode & 0o777 == 0o640


def test_the_file_and_its_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_text(tmp_path, "b.txt", "text")
    assert calls == [f"fsync {tmp_path}/b.txt.part", "rename", f"fsync {tmp_path}"]


def test_records_hash_what_was_written(tmp_path: Path) -> None:
    record = write_text(tmp_path, "b.txt", "é\n")
    data = "é\n".encode()
    assert FileRecord("b.txt", 3, hashlib.sha256(data).hexdigest()) == record
    assert record.sha256 == sha256_of(tmp_path / "b.txt")
