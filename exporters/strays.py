"""What is ours in the folder of an export, and the removal of what is not wanted of it."""

import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from exporters import disk
from exporters.bucket import Bucket
from exporters.errors import ExportError
from exporters.journal import JOURNAL
from exporters.manifest import HASHES, MANIFEST, RUN
from exporters.tablefile import TABLES
from exporters.windows import STARTS

WORK = ".work"
LOCK = f"{WORK}/lock"
HOLDER = f"{WORK}/holder"
SPOOL = f"{WORK}/stdin"  # a copy of standard input, for a job that is resumed
WEIGHTS = "weights.safetensors"
OWN_FOLDERS = ("tokens", "shards")
OWN_FILES = (HASHES, RUN, WEIGHTS, TABLES, STARTS)


def bytes_at(root: Path) -> int:
    """Bytes of the output at root, finished or not; another job may be at work on it."""
    paths = [root / name for name in OWN_FILES]
    for name in (*OWN_FOLDERS, WORK):
        if not (root / name).is_symlink():
            for place, _, names in os.walk(root / name):
                paths += [Path(place, inner) for inner in names]
    total = 0
    for path in paths:
        if path == root / SPOOL:
            continue
        with suppress(OSError):  # it was renamed or removed meanwhile
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def remove_strays(root: Path, finished: Collection[str]) -> None:
    """Remove what is ours at root but for finished files, by name, the journal and the lock.

    Raises:
        ExportError: if root is not the folder that was claimed any more, or one cannot be read.
        OSError: if something cannot be removed.
    """
    kept = {JOURNAL, LOCK, HOLDER, *finished}
    names = [*OWN_FOLDERS, WORK, *OWN_FILES, *(f"{name}.part" for name in (*OWN_FILES, MANIFEST))]
    for name in names:
        _remove_all_but(root, name, kept)
    disk.sync_folder(root)


def remove_objects(bucket: Bucket, kept: Collection[str] = ()) -> None:
    """Remove what is ours in a bucket but for what is kept, by name, or below one that ends in "/".

    What says that the rest is ours goes last.

    Raises:
        ExportError: if something cannot be listed or removed.
    """
    whole = {name for name in kept if not name.endswith("/")}
    below = tuple(name for name in kept if name.endswith("/"))
    ours = [
        name
        for name in bucket.list()
        if (name in OWN_FILES or name.partition("/")[0] in (*OWN_FOLDERS, WORK))
        and name not in whole
        and not name.startswith(below)
    ]
    bucket.remove(name for name in ours if not name.startswith(f"{WORK}/"))
    bucket.remove(name for name in ours if name.startswith(f"{WORK}/"))


def _remove_all_but(root: Path, name: str, kept: set[str]) -> None:
    """Remove a file, a link, or a folder with all that is in it, except for what is kept."""
    path = root / name
    if path.is_dir() and not path.is_symlink():
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise ExportError(f"{path} could not be read: {error.strerror}") from error
        for inner in inside:
            _remove_all_but(root, f"{name}/{inner.name}", kept)
        if not any(path.iterdir()):
            disk.remove_folder(path)
    elif name not in kept and (path.is_symlink() or path.exists()):
        disk.remove(path)


def remove_work(root: Path) -> None:
    """Remove .work, its journal last but the lock: until then it says what is done.

    Raises:
        ExportError: if root is not the folder that was claimed any more, or one cannot be read.
        OSError: if something cannot be removed.
    """
    _remove_all_but(root, WORK, {JOURNAL, LOCK, HOLDER})
    for name in (JOURNAL, HOLDER, LOCK):
        if (root / name).exists():
            disk.remove(root / name)
    disk.let_go(root)
    try:
        disk.remove_folder(root / WORK)
    except OSError as error:
        # Another job is about to look at the export, or has looked and gone.
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
    disk.sync_folder(root)
