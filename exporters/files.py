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

    @classmethod
    def of_text(cls, name: str, text: str) -> "FileRecord":
        """The record of a file that holds text in UTF-8."""
        data = text.encode()
        return cls(name, len(data), hashlib.sha256(data).hexdigest())


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
    return FileRecord.of_text(name, text)


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
