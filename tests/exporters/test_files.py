import errno
import hashlib
import os
from pathlib import Path

import pytest

from exporters import disk
from exporters.errors import ExportError
from exporters.files import FileRecord, copy, make_folders, sha256_of, whole_file, write_text


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    with whole_file(tmp_path, "a/b.txt") as part:
        part.write(b"text")
        assert part.name == tmp_path / "a/b.txt.part"
        assert not (tmp_path / "a/b.txt").exists()
    assert (tmp_path / "a/b.txt").read_bytes() == b"text"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    write_text(tmp_path, "b.txt", "old")

    def fail() -> None:
        with whole_file(tmp_path, "b.txt") as part:
            part.write(b"half")
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
    fsync, rename = os.fsync, disk.rename

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(disk, "rename", record_rename)
    write_text(tmp_path, "b.txt", "text")
    assert calls == [f"fsync {tmp_path}/b.txt.part", "rename", f"fsync {tmp_path}"]


def test_a_failed_write_says_where_why_and_that_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "write", full)
    expected = f"^{tmp_path}/a/b.txt could not be written: No space left.*give the same command"
    with pytest.raises(ExportError, match=expected):
        write_text(tmp_path, "a/b.txt", "text")
    assert os.listdir(tmp_path / "a") == []


def test_new_folders_are_synced_into_the_ones_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(disk, "sync_folder", calls.append)
    make_folders(tmp_path / "a/b")
    make_folders(tmp_path / "a/b")
    assert calls == [tmp_path, tmp_path / "a"]


def test_a_copy_tells_a_source_that_cannot_be_read_from_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"^{tmp_path}/gone could not be read: No such file"):
        copy(tmp_path / "gone", tmp_path, "b.txt")
    assert os.listdir(tmp_path) == []


def test_records_hash_what_was_written(tmp_path: Path) -> None:
    record = write_text(tmp_path, "b.txt", "é\n")
    data = "é\n".encode()
    assert FileRecord("b.txt", 3, hashlib.sha256(data).hexdigest()) == record
    assert record.sha256 == sha256_of(tmp_path / "b.txt")


def test_a_fifo_with_a_reader_is_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.txt.part")
    reader = os.open(tmp_path / "b.txt.part", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ExportError, match="could not be written: it is not a regular file"):
            write_text(tmp_path, "b.txt", "text" * 100_000)
        assert os.read(reader, 9) == b""
    finally:
        os.close(reader)
