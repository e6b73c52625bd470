"""A file that was found -> its bytes, decompressed, with what was read of it as it is stored."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from exporters.errors import ExportError
from exporters.filesystems import is_url
from exporters.safefile import open_regular
from jobs.errors import CorpusError
from jobs.inputs.compression import COMPRESSIONS, START_BYTES, compression_of, inflated
from jobs.inputs.files import InputFile, version_of
from jobs.inputs.kinds import TEXTUAL
from jobs.inputs.locations import STDIN, shown
from jobs.inputs.remote import READ_BYTES, changed, open_remote, read_remote
from jobs.inputs.source import Source
from jobs.inputs.stdin import read_stdin

Note = Callable[[str], None]


@dataclass
class FileRead:
    """What was read of a file, as it is stored; complete once its stream is used up."""

    bytes: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


@contextmanager
def open_stream(file: InputFile, record: FileRead, note: Note) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file: read(n) gives at most n of them, b"" at the end.

    Memory is bounded by n and a constant. `note` is told of every new attempt at a remote file.

    Raises:
        CorpusError: here or by a read, if the file cannot be read, is not as it was found, is not
            compressed as its name says, or its compressed data are damaged, cut off or suspicious.
    """
    with closing(_recorded(file, record, note)) as blocks:
        source = Source(shown(file.location), blocks)
        compression = file.compression
        if compression is None:
            found = compression_of(source.peek(START_BYTES))
            if file.location == STDIN:
                compression = found
            elif found is not None and file.format in TEXTUAL:
                raise CorpusError(
                    f"{source.where} is {COMPRESSIONS[found].name}, but its name does not say so; "
                    f"let it end in .{found}"
                )
        pieces = source.rest() if compression is None else inflated(source, compression)
        with io.BufferedReader(_Pieces(pieces), READ_BYTES) as stream:
            yield stream


@contextmanager
def open_seekable(
    file: InputFile, record: FileRead, note: Note, scratch: Path | None
) -> Iterator[BinaryIO]:
    """A seekable file of the decompressed bytes, whose record is complete from the start.

    It is the file itself where that can be; else a copy without a name, in `scratch` or the
    system's folder of temporary files, which is gone with the block.

    Raises:
        CorpusError: as open_stream; if a copy cannot be written; or, when the block ends, if the
            file was changed meanwhile.
    """
    if file.location != STDIN and not is_url(file.location) and file.compression is None:
        with closing(_recorded(file, record, note)) as blocks:
            for _ in blocks:
                pass
        with _local_errors(file), open_regular(Path(file.location)) as stream:
            _check_unchanged(file, stream, record.bytes)
            yield stream
            _check_unchanged(file, stream, record.bytes)
        return
    with open_stream(file, record, note) as stream, _copied(file, stream, scratch) as copy:
        yield copy


@contextmanager
def open_stored(file: InputFile, note: Note) -> Iterator[BinaryIO]:
    """A seekable file of the bytes as they are stored, of which only what is asked for is read.

    Raises:
        CorpusError: here or by a read, if it cannot be read, or is not as it was found.
        ValueError: if it is standard input, or its size is not known.
    """
    if file.bytes is None:
        raise ValueError(f"{shown(file.location)} can only be read as a whole")
    if is_url(file.location):
        with open_remote(file.location, file.bytes, file.version, note) as stream:
            yield stream
        return
    with _local_errors(file), open_regular(Path(file.location)) as stream:
        _check_unchanged(file, stream, file.bytes)
        yield stream


def hash_input(file: InputFile, advance: Callable[[int], None], note: Note) -> str:
    """The SHA-256 of a file as it is stored.

    `advance` is told of bytes as they are read, and of none while standard input is waited for.

    Raises:
        CorpusError: if it cannot be read, or is not as it was found.
    """
    record = FileRead()
    with closing(_recorded(file, record, note, lambda: advance(0))) as blocks:
        for block in blocks:
            advance(len(block))
    return record.digest.hexdigest()


@contextmanager
def _copied(file: InputFile, stream: BinaryIO, scratch: Path | None) -> Iterator[BinaryIO]:
    place = scratch or Path(tempfile.gettempdir())
    try:
        copy = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  # who asked for it closes it
        try:
            while block := stream.read(READ_BYTES):
                copy.write(block)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
    except OSError as error:
        raise CorpusError(
            f"{shown(file.location)} could not be copied to a temporary file in {place}: "
            f"{error.strerror}"
        ) from error
    with copy:
        yield copy


def _recorded(
    file: InputFile, record: FileRead, note: Note, check: Callable[[], None] = lambda: None
) -> Generator[bytes, None, None]:
    """The bytes of a file as they are stored, in blocks, which are counted and hashed.

    `check` is called while standard input is waited for.
    """
    if file.location == STDIN:
        blocks = read_stdin(check)
    elif is_url(file.location):
        blocks = read_remote(file.location, file.bytes, file.version, note)
    else:
        blocks = _read_local(file)
    with closing(blocks):
        for block in blocks:
            record.bytes += len(block)
            record.digest.update(block)
            yield block


def _read_local(file: InputFile) -> Generator[bytes, None, None]:
    size = 0
    with _local_errors(file), open_regular(Path(file.location)) as stream:
        _check_unchanged(file, stream, file.bytes)
        while True:
            block = stream.read(READ_BYTES)
            size += len(block)
            if not block or (file.bytes is not None and size > file.bytes):
                _check_unchanged(file, stream, size)
            if not block:
                return
            yield block


@contextmanager
def _local_errors(file: InputFile) -> Iterator[None]:
    """Errors of opening and reading a file of this machine, as CorpusError."""
    try:
        yield
    except ExportError as error:
        raise CorpusError(str(error)) from error
    except OSError as error:
        raise CorpusError(f"{file.location} could not be read: {error.strerror}") from error


def _check_unchanged(file: InputFile, stream: BinaryIO, read: int | None) -> None:
    """Raise CorpusError unless an open file is the one that was found, `read` bytes long."""
    if version_of(os.fstat(stream.fileno())) != file.version or read != file.bytes:
        raise changed(file.location, file.bytes)


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = memoryview(piece)
        given = self._held[: len(buffer)]
        buffer[: len(given)] = given
        self._held = self._held[len(given) :]
        return len(given)
