"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
def whole_file(root: Path, name: str) -> Iterator[Path]:
    """Give a path `NAME.part` to write to; it becomes root/name, durably, when the block ends.

    The file is synced, made readable as the umask says, renamed, and its folder is synced. If the
    block raises, nothing but a `.part` file was there, and it is removed.
    """
    final = root / name
    part = final.with_name(final.name + ".part")
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.chmod(part, 0o666 & ~_umask())
        _sync(part)
        os.replace(part, final)
        _sync(final.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(root: Path, name: str, text: str) -> FileRecord:
    """Write a small text file whole; returns its record."""
    with whole_file(root, name) as part:
        part.write_bytes(text.encode())
    return record_of_bytes(name, text.encode())


def move(root: Path, name: str, new_name: str) -> None:
    """Rename a finished file inside root, durably.

    Raises:
        OSError: if it cannot be renamed.
    """
    os.replace(root / name, root / new_name)
    _sync((root / new_name).parent)
    _sync((root / name).parent)


def copy(source: Path, root: Path, name: str) -> FileRecord:
    """Copy a file to root/name, whole; returns the record of what was read.

    Raises:
        OSError: if it cannot be read or written.
    """
    digest, size = hashlib.sha256(), 0
    with whole_file(root, name) as part, source.open("rb") as read, part.open("wb") as written:
        while block := read.read(HASH_BLOCK):
            digest.update(block)
            size += written.write(block)
    return FileRecord(name, size, digest.hexdigest())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in plain reads of bounded size.

    Raises:
        OSError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
