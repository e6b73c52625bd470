"""Paths -> text documents: .txt files, UTF-8, one file is one document."""

import codecs
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from exporters.errors import ExportError
from exporters.safefile import open_regular
from jobs.errors import CorpusError

READ_BYTES = 1 << 20
REPLACEMENT = "�"


@dataclass(frozen=True)
class TextFile:
    """A document on disk and its name in the manifest, which does not say where the corpus lay.

    Its size, time of change and inode are those of when it was found.
    """

    path: Path
    name: str
    bytes: int
    modified_ns: int
    inode: int


@dataclass(frozen=True)
class Corpus:
    """The documents in their order, and how many other files their folders held."""

    files: tuple[TextFile, ...]
    skipped_files: int

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass
class TextRecord:
    """What was read of one document; complete once its text is used up."""

    bytes: int = 0
    replaced: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def find_files(paths: Iterable[Path], out: Path | None = None) -> Corpus:
    """The .txt files that paths name: files in the order given, folders recursively and sorted.

    Hidden files and folders (".name") inside a folder are skipped; other files that are not .txt
    are skipped and counted. Links to folders are not followed. `out`, the folder of the export, is
    no part of a corpus whose folder holds it.

    Raises:
        CorpusError: if a path is missing, empty, no .txt file, or a folder without one.
    """
    files: list[TextFile] = []
    skipped = 0
    apart = out.stat() if out is not None and out.is_dir() else None
    for path in paths:
        if path.is_dir():
            found, others = _files_below(path, apart)
            if not found:
                raise CorpusError(f"{path} holds no .txt file; give a folder or a file with text")
            files += [_text_file(file, file.relative_to(path).as_posix()) for file in found]
            skipped += others
        else:
            files.append(_text_file(path, path.name))
    return Corpus(tuple(files), skipped)


def read_text(file: TextFile, errors: str, record: TextRecord) -> Iterator[str]:
    """The text of a document in pieces of at most READ_BYTES characters, without a leading BOM.

    `errors` is "strict" or "replace"; what is read is counted in `record`.

    Raises:
        CorpusError: if the file cannot be read, has no text, is binary (holds a NUL byte), or is
            not UTF-8 and `errors` is "strict", with the byte offset; or if it is not as it was
            when it was found.
    """
    held = b""
    characters = 0
    offset = 0  # of the first byte of `held` in the file
    try:
        with open_regular(file.path) as stream:
            _check_unchanged(file, stream, file.bytes)
            while True:
                block = stream.read(READ_BYTES)
                record.bytes += len(block)
                if not block or record.bytes > file.bytes:
                    _check_unchanged(file, stream, record.bytes)
                record.digest.update(block)
                if (place := block.find(b"\0")) >= 0:
                    raise CorpusError(
                        f"{file.path} is binary, not text: byte {offset + len(held) + place} is NUL"
                    )
                held += block
                if offset == 0 and held.startswith(codecs.BOM_UTF8):
                    held = held[len(codecs.BOM_UTF8) :]
                    offset = len(codecs.BOM_UTF8)
                text, used = codecs.utf_8_decode(held, errors, not block)
                marks = held[:used].count(REPLACEMENT.encode())
                record.replaced += text.count(REPLACEMENT) - marks
                offset += used
                held = held[used:]
                characters += len(text)
                if text:
                    yield text
                if not block:
                    break
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file.path} is not UTF-8: byte {offset + error.start} is "
            f"0x{error.object[error.start]:02x}; mend it or give --text-errors replace"
        ) from error
    except ExportError as error:
        raise CorpusError(str(error)) from error
    except OSError as error:
        raise CorpusError(f"{file.path} could not be read: {error.strerror}") from error
    if characters == 0:
        raise CorpusError(f"{file.path} is empty; remove it or leave it out")


def _files_below(folder: Path, apart: os.stat_result | None) -> tuple[list[Path], int]:
    """The .txt files below a folder, sorted by their parts, and the number of other files.

    A folder whose status is `apart` is left out, with all that is in it.
    """
    found: list[Path] = []
    others = 0
    places = [folder]
    while places:  # os.walk calls itself for each folder, and Python ends that at a depth of 1000
        place = places.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        if not entry.is_symlink() and not _is_at(entry, apart):
                            places.append(Path(entry.path))
                    elif entry.name.endswith(".txt"):
                        found.append(Path(entry.path))
                    else:
                        others += 1
        except OSError as error:
            raise CorpusError(f"{place} could not be read: {error.strerror}") from error
    return sorted(found, key=lambda path: path.relative_to(folder).parts), others


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link to nothing or to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_at(entry: "os.DirEntry[str]", place: os.stat_result | None) -> bool:
    return place is not None and os.path.samestat(entry.stat(), place)


def _text_file(path: Path, name: str) -> TextFile:
    try:
        status = path.stat()
    except OSError as error:
        raise CorpusError(f"{path} could not be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"{path} is not a regular file")
    if path.suffix != ".txt":
        raise CorpusError(f"{path} is not a .txt file, the only kind that is read")
    if status.st_size == 0:
        raise CorpusError(f"{path} is empty; remove it or leave it out")
    # A name on disk need not be text; what is not UTF-8 in it is shown as \\xNN.
    readable = os.fsencode(name).decode("utf-8", "backslashreplace")
    return TextFile(path, readable, status.st_size, status.st_mtime_ns, status.st_ino)


def _check_unchanged(file: TextFile, stream: BinaryIO, read: int) -> None:
    """Raise CorpusError unless an open file is the one that was found, `read` bytes long."""
    status = os.fstat(stream.fileno())
    now = (status.st_size, status.st_mtime_ns, status.st_ino)
    if now != (file.bytes, file.modified_ns, file.inode) or read != file.bytes:
        raise CorpusError(
            f"{file.path} changed since it was found with {file.bytes} bytes; "
            "run again when nobody writes to it"
        )
