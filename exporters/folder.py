"""The folder of an export: claimed before the work, cleared of our own files only."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from exporters.errors import ExportError
from exporters.manifest import FORMAT, HASHES, MANIFEST, RUN
from exporters.tablefile import TABLES
from exporters.windows import STARTS
from kernels.errors import QkvmillError

WORK = ".work"
WEIGHTS = "weights.safetensors"
OWN_FOLDERS = ("tokens", "shards")
PARTS = tuple(f"{name}.part" for name in (MANIFEST, HASHES, RUN, WEIGHTS, STARTS))
OWN_FILES = (HASHES, RUN, WEIGHTS, TABLES, STARTS, *PARTS)


def check_claim(root: Path, *, overwrite: bool) -> str | None:
    """Whether root may be written to; returns what will be replaced there, in words, or None.

    Raises:
        ExportError: if root holds something that is not ours, or a finished export and not
            `overwrite`.
    """
    if root.is_symlink() and not root.exists():
        raise ExportError(f"--out {root} is a link to nothing")
    if not root.exists():
        return None
    if not root.is_dir():
        raise ExportError(f"--out {root} is a file; give a folder")
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError as error:
        raise ExportError(f"--out {root} could not be read: {error.strerror}") from error
    if not names:
        return None
    if MANIFEST in names and _is_ours(root / MANIFEST):
        if overwrite:
            return "a finished export"
        raise ExportError(
            f"--out {root} holds a finished export; give another folder, "
            "or --overwrite to replace it"
        )
    if WORK in names and MANIFEST not in names:
        return "an unfinished export"
    held = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    raise ExportError(f"--out {root} holds something else ({held}); give another folder")


def claim(root: Path, *, overwrite: bool) -> FileLock:
    """Make root ours and empty of earlier work of ours; check_claim says whether that is allowed.

    Returns the lock that keeps other jobs out until `release`, or until this process ends.

    Raises:
        ExportError: if root cannot be claimed or written to, or another job holds it.
    """
    check_claim(root, overwrite=overwrite)
    try:
        (root / WORK).mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / WORK / "lock")
        lock.acquire(timeout=0)
        # Another job may have finished since the check.
        check_claim(root, overwrite=overwrite)
        _clear(root)
    except Timeout as error:
        raise ExportError(
            f"--out {root} is being written by another job; wait for it or give another folder"
        ) from error
    except OSError as error:
        raise ExportError(
            f"--out {error.filename or root} could not be written: {error.strerror}"
        ) from error
    return lock


@contextmanager
def claimed(root: Path, *, overwrite: bool) -> Iterator[FileLock]:
    """Claim root; if the block fails for a reason of the user's, leave nothing of ours there."""
    existed = root.exists()
    lock = claim(root, overwrite=overwrite)
    try:
        yield lock
    except QkvmillError:
        _clear(root)
        release(root, lock)
        if not existed:
            root.rmdir()
        raise


def release(root: Path, lock: FileLock) -> None:
    """Remove what only an unfinished export needs, and let others claim root."""
    shutil.rmtree(root / WORK)
    lock.release()


def check_space(root: Path, needed: int) -> None:
    """Raise ExportError if the disk that holds root has fewer than `needed` bytes free."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ExportError(
            f"--out {root} needs {readable(needed)}, but its disk has {readable(free)} free; "
            "make space, export less or use a smaller --dtype"
        )


def readable(count: int) -> str:
    """A number of bytes in decimal units: 1234567 -> '1.2 MB'."""
    if count < 1000:
        return f"{count} bytes"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB", "PB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def _clear(root: Path) -> None:
    """Remove what earlier work of ours left at root, which is claimed: WORK stays."""
    (root / MANIFEST).unlink(missing_ok=True)
    for name in OWN_FILES:
        (root / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.rmtree(root / name)


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest.json is the start of one of ours; its version may be another."""
    with manifest.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)
