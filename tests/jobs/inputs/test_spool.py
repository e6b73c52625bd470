import io
import os
import sys
import threading
from pathlib import Path

import pytest

from exporters import disk
from exporters.errors import ExportError
from exporters.folder import claim, claimed
from exporters.kept import check_kept, discard, start_over
from exporters.strays import bytes_at
from jobs.errors import CorpusError
from jobs.inputs.files import Corpus, find_files
from jobs.inputs.opening import FileRead, open_stream
from jobs.inputs.spool import spool
from jobs.stopping import StoppedError
from tests.jobs.inputs.streams import COMPRESS, quiet

JOB = {"seed": 0}
TEXT = b"One fish, two fish.\n" * 200_000


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def spooled(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: bytes | io.BytesIO,
    overwrite: bool = False,
) -> tuple[Corpus, list[str]]:
    """The corpus with a copy of what standard input gives, and what was said."""
    buffer = io.BytesIO(given) if isinstance(given, bytes) else given
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer))
    said: list[str] = []
    corpus = spool(find_files(["-"]), folder, said.append, lambda: None, overwrite=overwrite)
    return corpus, said


def text_of(corpus: Corpus) -> bytes:
    with open_stream(corpus.files[0], FileRead(), quiet) as stream:
        return stream.read()


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_standard_input_becomes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    stored = COMPRESS[compression](TEXT) if compression else TEXT
    corpus, said = spooled(tmp_path, monkeypatch, stored)
    (file,) = corpus.files
    assert (file.location, file.name) == (str(tmp_path / "stdin"), "stdin")
    assert (file.bytes, file.compression) == (len(stored), compression)
    assert stored == (tmp_path / "stdin").read_bytes()
    assert text_of(corpus) == TEXT
    assert os.listdir(tmp_path) == ["stdin"]
    assert said[0].startswith("standard input: ")


def test_a_corpus_without_standard_input_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    corpus = find_files([str(tmp_path / "a.txt")])
    assert spool(corpus, tmp_path, quiet, lambda: None) is corpus


def test_nothing_is_copied_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match="standard input is empty; pipe text into the command"):
        spooled(tmp_path, monkeypatch, b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("again", [TEXT, b"", Terminal(b"typed")], ids=["same", "empty", "tty"])
def test_a_resumed_job_goes_on_with_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bytes | io.BytesIO
) -> None:
    first, _ = spooled(tmp_path, monkeypatch, TEXT)
    second, said = spooled(tmp_path, monkeypatch, again)
    assert first == second
    expected = f"nothing comes from standard input: going on with what was copied to {tmp_path}"
    assert said == ([] if again == TEXT else [f"{expected}/stdin"])


OTHERS = [
    pytest.param(TEXT[:-1], id="shorter"),
    pytest.param(TEXT + b".", id="longer"),
    pytest.param(b"o" + TEXT[1:], id="first"),
    pytest.param(TEXT[:-9] + b"x" + TEXT[-8:], id="late"),
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_bytes_are_refused_unless_they_are_to_replace_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    spooled(tmp_path, monkeypatch, TEXT)
    with pytest.raises(CorpusError, match=r"standard input differs from what .*--overwrite to st"):
        spooled(tmp_path, monkeypatch, other)
    assert (tmp_path / "stdin").read_bytes() == TEXT
    corpus, said = spooled(tmp_path, monkeypatch, other, overwrite=True)
    assert other == text_of(corpus)
    assert os.listdir(tmp_path) == ["stdin"]
    assert "it is copied again" in said[0]


def test_a_job_is_stopped_while_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet, inlet = os.pipe()
    os.write(inlet, b"some")
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()

    def check() -> None:
        if stop.is_set():
            raise StoppedError(2)

    with open(outlet) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", stream)
        with pytest.raises(StoppedError):
            spool(find_files(["-"]), tmp_path, quiet, check)
    os.close(inlet)
    timer.join()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(file: io.FileIO, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", write)
    with pytest.raises(ExportError, match="stdin could not be written: No space left on device"):
        spooled(tmp_path, monkeypatch, TEXT)
    assert os.listdir(tmp_path) == []


def test_the_copy_outlives_a_job_that_ends_but_not_its_commit_nor_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, copy = tmp_path / "out", tmp_path / "out/.work/stdin"

    def end(error: Exception | None, hopeless: bool = False) -> None:
        with claimed(root, JOB, overwrite=False) as work:
            check_kept(work, lambda _: None)
            spooled(root / ".work", monkeypatch, TEXT)
            if hopeless:
                discard(work)
            if error:
                raise error

    with pytest.raises(StoppedError):
        end(StoppedError(2))
    assert copy.read_bytes() == TEXT
    assert bytes_at(root) < len(TEXT)  # it is none of the output
    copy.with_name("stdin.part").write_bytes(b"of a copy that was cut off")
    work = claim(root, JOB, overwrite=False)
    start_over(work)
    work.lock.release()
    assert copy.exists()
    assert not copy.with_name("stdin.part").exists()
    with pytest.raises(CorpusError):
        end(CorpusError("no"), hopeless=True)
    assert not root.exists()
    with pytest.raises(StoppedError):
        end(StoppedError(2))
    claim(root, {"seed": 1}, overwrite=True).lock.release()
    assert not copy.exists()
    with pytest.raises(ExportError, match="unfinished export of other options"):
        end(None)
    claim(root, JOB, overwrite=True).lock.release()
    end(None)
    assert os.listdir(root) == []
