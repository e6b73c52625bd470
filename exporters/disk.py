"""Every change that is made to a disk, one function an operation, and nothing else.

All of an export is written through these, so that the tests can stop, refuse or forget each one.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder whose parent exists."""
    path.mkdir()


def create(path: Path) -> FileIO:
    """Open a new or emptied file for writing, unbuffered; its mode is as the umask says."""
    return FileIO(path, "w", opener=_opened)


def open_end(path: Path) -> FileIO:
    """Open a file to write at its end, unbuffered."""
    return FileIO(path, "a", opener=_opened)


def write(file: FileIO, data: memoryview) -> int:
    """Write some of data; returns how many bytes of it."""
    return file.write(data)


def truncate(file: FileIO, size: int) -> None:
    """Cut a file to its first `size` bytes."""
    file.truncate(size)


def sync(file: FileIO) -> None:
    """Return once a file's bytes would outlast a power cut."""
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Return once the names in a folder would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, new_path: Path) -> None:
    """Rename a file, replacing what was there."""
    path.replace(new_path)


def remove(path: Path) -> None:
    """Remove a file or a link."""
    path.unlink()


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    path.rmdir()


def _opened(path: str, flags: int) -> int:
    """Open a regular file for writing, neither through a link nor by waiting for a FIFO's reader.

    Raises:
        OSError: if it cannot be opened, or is a FIFO or a device.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor
