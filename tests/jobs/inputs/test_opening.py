import hashlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import CorpusError
from jobs.inputs.files import InputFile, find_files
from jobs.inputs.opening import FileRead, hash_input, open_seekable, open_stream
from jobs.inputs.remote import READ_BYTES
from tests.jobs.inputs.streams import COMPRESS, quiet, write


def found(path: Path) -> InputFile:
    (file,) = find_files([str(path)]).files
    return file


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let standard input hold data."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_the_record_is_that_of_the_stored_bytes(tmp_path: Path, name: str) -> None:
    text = os.urandom(3 * READ_BYTES + 5)
    stored = COMPRESS.get(name.rpartition(".")[2], bytes)(text)
    record = FileRead()
    with open_stream(found(write(tmp_path, name, stored)), record, quiet) as stream:
        assert text == stream.read()
    assert len(stored) == record.bytes
    assert hashlib.sha256(stored).hexdigest() == record.digest.hexdigest()


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewritten(path: Path) -> None:
    path.write_bytes(b"y" * path.stat().st_size)


def exchanged(path: Path) -> None:
    kept = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    other.replace(path)


def shortened(path: Path) -> None:
    os.truncate(path, 9)


# Of a file that is exchanged while it is read, the one that was found is read to its end.
@pytest.mark.parametrize(
    ("change", "size"),
    [
        *[(change, 0) for change in (appended, rewritten, exchanged, shortened, Path.touch)],
        *[(change, 10) for change in (appended, rewritten, shortened, Path.touch)],
    ],
)
def test_a_file_that_changes_after_it_was_found_is_named(
    tmp_path: Path, change: Callable[[Path], None], size: int
) -> None:
    path = write(tmp_path, "a.txt", b"x" * (3 * READ_BYTES))
    os.utime(path, (1, 1))
    file = found(path)
    if not size:
        change(path)

    def drain() -> None:
        with open_stream(file, FileRead(), quiet) as stream:
            assert len(stream.read(size)) == size
            change(path)
            stream.read()

    with pytest.raises(CorpusError, match=r"a\.txt changed since .* when nobody writes to it"):
        drain()


def test_a_file_that_grows_without_end_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"x" * READ_BYTES)

    def drain() -> None:
        with open_stream(found(path), FileRead(), quiet) as stream:
            stream.read(1)
            os.truncate(path, 1 << 40)  # a hole: more than could be read
            stream.read()

    with pytest.raises(CorpusError, match="changed since"):
        drain()


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    file = found(path := write(tmp_path, "a.txt", b"text"))
    path.unlink()
    os.mkfifo(path)
    for opened in (
        open_stream(file, FileRead(), quiet),
        open_seekable(file, FileRead(), quiet, None),
    ):
        with pytest.raises(CorpusError, match="not a regular file"), opened:
            pass


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    file = found(path := write(tmp_path, "a.txt", b"text"))
    path.unlink()
    with (
        pytest.raises(CorpusError, match=r"a\.txt could not be read: No such file"),
        open_stream(file, FileRead(), quiet),
    ):
        pass


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_a_seekable_file_has_its_record_from_the_start(tmp_path: Path, name: str) -> None:
    text = os.urandom(READ_BYTES + 5)
    stored = COMPRESS["gz"](text) if name.endswith("gz") else text
    record = FileRead()
    file = found(write(tmp_path, name, stored))
    with open_seekable(file, record, quiet, tmp_path) as stream:
        assert (record.bytes, record.digest.digest()) == (
            len(stored),
            hashlib.sha256(stored).digest(),
        )
        stream.seek(-5, io.SEEK_END)
        assert text[-5:] == stream.read()
        stream.seek(0)
        assert text == stream.read()
        assert os.listdir(tmp_path) == [name]  # a copy has no name


def test_a_seekable_file_that_is_changed_while_it_is_used_is_named(tmp_path: Path) -> None:
    file = found(path := write(tmp_path, "a.parquet", b"text"))
    with (
        pytest.raises(CorpusError, match="changed since"),
        open_seekable(file, FileRead(), quiet, None),
    ):
        path.write_bytes(b"more")


def test_a_copy_that_cannot_be_written_is_named_with_its_place(tmp_path: Path) -> None:
    file = found(write(tmp_path, "a.npy.gz", COMPRESS["gz"](b"text")))
    with (
        pytest.raises(CorpusError, match=r"a.npy.gz could not be copied to .*none: No such file"),
        open_seekable(file, FileRead(), quiet, tmp_path / "none"),
    ):
        pass


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_standard_input_is_read_once_whatever_it_is_compressed_by(
    monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    stored = COMPRESS[compression](b"text") if compression else b"text"
    give(monkeypatch, stored)
    (file,) = find_files(["-"]).files
    record = FileRead()
    with open_stream(file, record, quiet) as stream:
        assert stream.read() == b"text"
    assert (len(stored), hashlib.sha256(stored).digest()) == (record.bytes, record.digest.digest())
    with (
        pytest.raises(CorpusError, match="standard input was read already"),
        open_stream(file, FileRead(), quiet),
    ):
        pass


def test_standard_input_that_is_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    (file,) = find_files(["-"]).files
    with (
        pytest.raises(CorpusError, match="standard input is closed"),
        open_stream(file, FileRead(), quiet),
    ):
        pass


def test_a_job_is_stopped_while_standard_input_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StopError(Exception):
        pass

    def stop(amount: int) -> None:
        raise StopError

    reading, writing = os.pipe()
    with os.fdopen(writing, "wb"), io.TextIOWrapper(os.fdopen(reading, "rb")) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(StopError):
            hash_input(find_files(("-",)).files[0], stop, quiet)
