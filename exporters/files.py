"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

import hashlib
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from exporters import disk
from exporters.bucket import READ_BYTES, Bucket, Place
from exporters.errors import ExportError
from exporters.safefile import open_regular

HASH_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class FileRecord:
    """A finished file: its name inside the export, its bytes and their hash."""

    name: str
    bytes: int
    sha256: str


def record_of_bytes(name: str, data: bytes) -> FileRecord:
    """The record of a file that holds data."""
    return FileRecord(name, len(data), hashlib.sha256(data).hexdigest())


@contextmanager
def whole_file(root: Path, name: str) -> Iterator[FileIO]:
    """Give a new file `NAME.part` to write to; it becomes root/name, durably, when the block ends.

    The file is synced and renamed, and its folder is synced. If the block raises, nothing but a
    `.part` file was there, and it is removed.

    Raises:
        ExportError: for every OSError, with the path and the reason; and if root is not the folder
            that was claimed any more.
    """
    final = root / name
    part = final.with_name(final.name + ".part")
    try:
        make_folders(final.parent)
        with disk.create(part) as file:
            yield file
            disk.sync(file)
        disk.rename(part, final)
        disk.sync_folder(final.parent)
    except BaseException as error:
        with suppress(OSError, ExportError):
            if part.exists():
                disk.remove(part)
        if isinstance(error, OSError):
            raise not_written(final, error) from error
        raise


def adopt(root: Path, own_name: str, name: str) -> None:
    """Give a whole file below root, which another process wrote and synced, its name, durably.

    Raises:
        ExportError: if it cannot be renamed.
    """
    final = root / name
    try:
        make_folders(final.parent)
        disk.rename(root / own_name, final)
        disk.sync_folder(final.parent)
    except OSError as error:
        raise not_written(final, error) from error


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of data: one write takes 2 GB at most, and may take less than it is given."""
    view = memoryview(data)
    while len(view):
        view = view[disk.write(file, view) :]


def make_folders(path: Path) -> None:
    """Make a folder and those above it where they are missing, durably.

    Raises:
        OSError: if one cannot be made.
    """
    if path.is_dir():
        return
    make_folders(path.parent)
    try:
        disk.make_folder(path)
    except FileExistsError:
        if not path.is_dir():  # else another job was quicker
            raise
    disk.sync_folder(path.parent)


def write_text(root: Place, name: str, text: str) -> FileRecord:
    """Write a small text file whole; returns its record.

    Raises:
        ExportError: if it cannot be written.
    """
    if isinstance(root, Bucket):
        (root / name).put(text.encode())
    else:
        with whole_file(root, name) as file:
            write_all(file, text.encode())
    return record_of_bytes(name, text.encode())


def copy(source: Place, root: Path, name: str) -> FileRecord:
    """Copy a file to root/name, whole; returns the record of what was read.

    Raises:
        ExportError: if it cannot be read or written.
    """
    digest, size = hashlib.sha256(), 0
    with whole_file(root, name) as file:
        for block in _readable(source):
            digest.update(block)
            size += len(block)
            write_all(file, block)
    return FileRecord(name, size, digest.hexdigest())


@contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """Give a file itself, or a copy of an object that goes when the block ends.

    What is mapped into memory of the copy stays there.

    Raises:
        ExportError: if an object cannot be read, or its copy not written.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="qkvmill-") as folder:
        name = path.url.rpartition("/")[2]
        copy(path, Path(folder), name)
        yield Path(folder) / name


def has_size(path: Path, size: int) -> bool:
    """Whether a regular file of so many bytes is there, itself and no link to it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def sha256_of(path: Place, advance: Callable[[int], None] = lambda _: None) -> str:
    """The SHA-256 of a file, in plain reads of bounded size; `advance` is told of each.

    Raises:
        ExportError: if it is no regular file.
        OSError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


def not_written(path: Path, error: OSError) -> ExportError:
    """The error of a write that failed, with its place, its reason, and that it can be resumed."""
    return ExportError(
        f"{path} could not be written: {error.strerror or error}; what is finished is kept, "
        "so put that right and give the same command again"
    )


def blocks(path: Place) -> Iterator[bytes]:
    """The bytes of a file or an object, in plain reads of bounded size.

    Raises:
        ExportError: if it is no regular file.
        OSError: if it cannot be read.
    """
    with open_regular(path, READ_BYTES) as file:
        while block := file.read(HASH_BLOCK):
            yield block


def _readable(path: Place) -> Iterator[bytes]:
    """The bytes of a file, whose errors are told from those of what is written meanwhile."""
    try:
        yield from blocks(path)
    except OSError as error:
        raise ExportError(f"{path} could not be read: {error.strerror or error}") from error
