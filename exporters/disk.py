"""Every change that is made to a disk, one function an operation, and nothing else.

All of an export is written through these, so that the tests can stop, refuse or forget each one.
Below a folder that is held, whatever goes by path is refused once its lock is another file or gone:
the folder was moved, and who claimed its place since is not to be written over.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from exporters.errors import ExportError

_held: dict[Path, tuple[Path, os.stat_result]] = {}  # folder -> its lock, as it was


def hold(folder: Path, lock: Path) -> None:
    """Refuse changes below a folder from when `lock`, which its holder keeps open, is not there.

    Raises:
        OSError: if it is not there already.
    """
    _held[folder] = (lock, lock.stat(follow_symlinks=False))


def let_go(folder: Path) -> None:
    """Refuse nothing below a folder any more."""
    _held.pop(folder, None)


def lost(path: Path) -> ExportError | None:
    """The error, if the folder above path that is held is not the one that was claimed any more.

    Raises:
        OSError: if it cannot be looked at.
    """
    for folder, (lock, held) in list(_held.items()):
        if not path.is_relative_to(folder):
            continue
        try:
            if os.path.samestat(lock.stat(follow_symlinks=False), held):
                continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        return ExportError(
            f"--out {folder} was moved, removed or replaced while the job ran; what is finished is "
            "where it was moved to, and what stands there now is left alone"
        )
    return None


def make_folder(path: Path) -> None:
    """Make a folder whose parent exists."""
    _check(path)
    path.mkdir()


def create(path: Path) -> FileIO:
    """Open a new or emptied file for writing, unbuffered; its mode is as the umask says."""
    _check(path)
    return FileIO(path, "w", opener=_opened)


def open_end(path: Path) -> FileIO:
    """Open a file to write at its end, unbuffered."""
    _check(path)
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
    _check(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, new_path: Path) -> None:
    """Rename a file, replacing what was there."""
    _check(new_path)
    path.replace(new_path)


def remove(path: Path) -> None:
    """Remove a file or a link."""
    _check(path)
    path.unlink()


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    _check(path)
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


def _check(path: Path) -> None:
    """Raise ExportError if the folder above path that is held is lost."""
    if error := lost(path):
        raise error
