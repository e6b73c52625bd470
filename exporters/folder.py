"""The folder of an export: claimed before the work, kept where the journal says, then released."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from exporters import disk
from exporters.errors import ExportError
from exporters.files import make_folders, sha256_of, write_all
from exporters.journal import (
    JOURNAL,
    Journal,
    differences,
    mend_journal,
    read_journal,
    start_journal,
)
from exporters.manifest import FORMAT, MANIFEST, FileEntry
from exporters.safefile import open_regular
from exporters.strays import HOLDER, LOCK, WORK, remove_strays, remove_work
from kernels.errors import QkvmillError


@dataclass(frozen=True)
class Work:
    """An export that is being written and what is done of it."""

    root: Path
    lock: FileLock
    journal: Journal

    @property
    def committed(self) -> bool:
        """Whether nothing is left but to remove the journal."""
        return (self.root / MANIFEST).exists()

    def kept(self, name: str) -> FileEntry | None:
        """The entry of a file that is finished already."""
        return self.journal.files.get(name)

    def kept_bytes(self) -> int:
        """Bytes of the files that are finished already."""
        return sum(entry.bytes for entry in self.journal.files.values())


def check_claim(root: Path, *, overwrite: bool) -> str | None:
    """Whether root may be written to; returns what stands there, in words, or None.

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
        if overwrite or (root / JOURNAL).exists():
            return "a finished export"
        raise ExportError(
            f"--out {root} holds a finished export; give another folder, "
            "or --overwrite to replace it"
        )
    if WORK in names and MANIFEST not in names:
        return "an unfinished export"
    held = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    raise ExportError(f"--out {root} holds something else ({held}); give another folder")


def claim(root: Path, fingerprint: dict[str, Any], *, overwrite: bool) -> Work:
    """Make root ours, with what an unfinished job of the same fingerprint has done already.

    The lock keeps other jobs out until `release`, or until this process ends.

    Args:
        fingerprint: everything that shapes bytes, as JSON can hold it.
        overwrite: replace a finished export, or an unfinished one of another fingerprint.

    Raises:
        ExportError: if root cannot be claimed or written to, another job holds it, or it holds an
            unfinished export of another fingerprint.
    """
    fingerprint = json.loads(json.dumps(fingerprint))
    check_claim(root, overwrite=overwrite)
    if (root / WORK).is_symlink():
        raise ExportError(f"--out {root / WORK} is a link; remove it or give another folder")
    lock = FileLock(root / LOCK)
    try:
        make_folders(root / WORK)
        lock.acquire(timeout=0)
        _say_who_holds(root)
        return Work(root, lock, _journal(root, fingerprint, overwrite))
    except Timeout as error:
        raise ExportError(
            f"--out {root} is being written by {_holder(root)}; wait for it or give another folder"
        ) from error
    except OSError as error:
        lock.release()
        raise ExportError(
            f"--out {error.filename or root} could not be written: {error.strerror}"
        ) from error
    except BaseException:
        if (root / MANIFEST).exists() and not (root / JOURNAL).exists():
            remove_work(root)
        lock.release()
        raise


@contextmanager
def claimed(root: Path, fingerprint: dict[str, Any], *, overwrite: bool) -> Iterator[Work]:
    """Claim root for the time of the block, which commits an export there.

    If the block fails, what its journal names is kept for the next time; where that is nothing,
    nothing of ours is left behind.

    Raises:
        ExportError: as `claim`.
    """
    existed = root.exists()
    work = claim(root, fingerprint, overwrite=overwrite)
    try:
        yield work
    except QkvmillError:
        # What could not be written may be impossible to remove too: the first error is the one.
        with suppress(OSError):
            if not work.journal.files:
                remove_strays(root, ())
                remove_work(root)
                if not existed:
                    disk.remove_folder(root)
        work.lock.release()
        raise
    except BaseException:
        work.lock.release()
        raise
    release(work)


@contextmanager
def else_in_vain(work: Work) -> Iterator[None]:
    """Forget what is done if the block fails: the same command could not use it."""
    try:
        yield
    except QkvmillError:
        work.journal.files.clear()
        raise


def release(work: Work) -> None:
    """Remove what only an unfinished export needs, and let others claim root."""
    remove_work(work.root)
    work.lock.release()


def tidy(root: Path) -> None:
    """Remove what a job that was stopped just after its commit left beside a finished export."""
    lock = FileLock(root / LOCK)
    with suppress(OSError, Timeout):
        if (root / WORK).exists():
            lock.acquire(timeout=0)
            remove_work(root)
            lock.release()


def check_kept(work: Work, advance: Callable[[int], None]) -> list[str]:
    """Check what the journal says is done, and remove everything else that is ours.

    `advance` is told of bytes as they are read. Returns the names of files that are missing or not
    as they were written, which count as not done.

    Raises:
        ExportError: if a file cannot be removed.
    """
    entries = list(work.journal.files.values())
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="check") as pool:
        whole = pool.map(lambda entry: _is_whole(work.root, entry, advance), entries)
        damaged = [entry.name for entry, good in zip(entries, whole, strict=True) if not good]
    for name in damaged:
        work.journal.forget(name)
    try:
        remove_strays(work.root, work.journal.files)
    except OSError as error:
        raise ExportError(f"{error.filename} could not be removed: {error.strerror}") from error
    return damaged


def _journal(root: Path, fingerprint: dict[str, Any], overwrite: bool) -> Journal:
    """The journal to go on with: that of an unfinished job of the same fingerprint, or a new one.

    Raises:
        ExportError: if what stands at root may not be replaced.
        OSError: if something cannot be removed.
    """
    # Another job may have finished since the first check.
    check_claim(root, overwrite=overwrite)
    kept = read_journal(root)
    if kept is not None and kept.fingerprint == fingerprint:
        mend_journal(root)
        return kept
    if (root / MANIFEST).exists():
        if not overwrite:
            raise ExportError(
                f"--out {root} holds a finished export of other options or inputs; "
                "give another folder, or --overwrite to replace it"
            )
        # Before anything else, so that no manifest ever stands beside files that are not its own.
        disk.remove(root / MANIFEST)
        disk.sync_folder(root)
    elif kept is not None and not overwrite:
        changed = "; ".join(differences(kept.fingerprint, fingerprint))
        raise ExportError(
            f"--out {root} holds an unfinished export of other options or inputs ({changed}); "
            "give what it began with, another folder, or --overwrite to start over"
        )
    remove_strays(root, ())
    return start_journal(root, fingerprint)


def _is_whole(root: Path, entry: FileEntry, advance: Callable[[int], None]) -> bool:
    """Whether a file is there, reached through no link, with the bytes that were written."""
    path = root / entry.name
    try:
        own = os.path.join(os.path.realpath(root), entry.name)
        if os.path.realpath(path) == own and path.stat().st_size == entry.bytes:
            return sha256_of(path, advance) == entry.sha256
    except (OSError, ExportError):
        pass
    return False


def _say_who_holds(root: Path) -> None:
    if os.path.lexists(root / HOLDER):  # perhaps a stranger's link or FIFO
        disk.remove(root / HOLDER)
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    with disk.create(root / HOLDER) as file:
        text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        write_all(file, text.encode())


def _holder(root: Path) -> str:
    """Who holds the lock, as it said itself."""
    try:
        with open_regular(root / HOLDER) as file:
            return file.read(200).decode() or "another job"
    except (OSError, ExportError, UnicodeDecodeError):
        return "another job"


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest.json is the start of one of ours; its version may be another."""
    try:
        file = open_regular(manifest)
    except (OSError, ExportError):
        return False
    with file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)
