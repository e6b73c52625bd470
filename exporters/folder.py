"""The folder of an export: claimed before the work, kept where the journal says, then released."""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from exporters import disk
from exporters.bucket import Bucket, Place
from exporters.errors import ExportError
from exporters.files import make_folders, write_all
from exporters.journal import (
    JOURNAL,
    Journal,
    mend_journal,
    other_job,
    read_journal,
    start_journal,
)
from exporters.manifest import MANIFEST, FileEntry
from exporters.safefile import open_regular
from exporters.state import State, check_claim
from exporters.strays import HOLDER, LOCK, SPOOL, WORK, remove_strays, remove_work
from kernels.errors import QkvmillError

HOLDER_SECONDS = 2.0


@dataclass(frozen=True)
class Work:
    """An export that is being written and what is done of it.

    Files are made at root. That is the place of the export itself, or a folder of this machine from
    where the journal brings them to a bucket; shards are then gone from it.
    """

    root: Path
    lock: FileLock  # of root
    journal: Journal
    folders: tuple[Path, ...] = ()  # that go again if nothing is kept, the innermost first
    bucket: Bucket | None = None

    @property
    def out(self) -> Place:
        """The place of the export, for messages and for what is written last."""
        return self.bucket or self.root

    def kept(self, name: str) -> FileEntry | None:
        """The entry of a file that is finished already."""
        return self.journal.files.get(name)

    def bytes_at_root(self) -> int:
        """Bytes of the files that are finished already and stand at root."""
        files = self.journal.files.values()
        if self.bucket is None:
            return self.kept_bytes()
        return sum(entry.bytes for entry in files if entry.kind != "windows")

    def kept_bytes(self) -> int:
        """Bytes of the files that are finished already."""
        return sum(entry.bytes for entry in self.journal.files.values())


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
    _refuse_link(root)
    folders = _folders_to_make(root)
    lock = FileLock(root / LOCK)
    try:
        make_folders(root / WORK)
        lock.acquire(timeout=0)
        disk.hold(root, root / LOCK)
        _say_who_holds(root)
        return Work(root, lock, _journal(root, fingerprint, overwrite), folders)
    except Timeout as error:
        raise ExportError(
            f"--out {root} is being written by {_holder(root)}; wait for it or give another folder"
        ) from error
    except OSError as error:
        _leave(root, lock, folders)
        if _is_of_another_job(root, error):
            raise ExportError(
                f"--out {root} is being claimed or given back by another job; look at what it came "
                "to, or give the same command again"
            ) from error
        raise ExportError(
            f"--out {error.filename or root} could not be written: {error.strerror}"
        ) from error
    except BaseException:
        _leave(root, lock, folders)
        raise


@contextmanager
def claimed(root: Path, fingerprint: dict[str, Any], *, overwrite: bool) -> Iterator[Work]:
    """Claim root for the time of the block, which commits an export there.

    If the block raises a QkvmillError, what its journal names is kept for the next time, and the
    copy of standard input with it. Where that is nothing, all that is ours is removed again, with
    the folders that were made for it and a folder that held nothing but an export.

    Raises:
        ExportError: as `claim`; and if root was moved, removed or replaced meanwhile, what stands
            there then is left alone.
    """
    work = claim(root, fingerprint, overwrite=overwrite)
    try:
        yield work
    except QkvmillError as error:
        moved = disk.lost(root)
        # What could not be written may be impossible to remove too: the first error is the one.
        with suppress(OSError, ExportError):
            if not work.journal.files and not (root / SPOOL).is_file():
                remove_strays(root, ())
                _remove_work_and_unlock(root, work.lock)
                _remove_empty(work.folders)
        _unlock(root, work.lock)
        if moved:  # from which any other error may only follow
            raise moved from error
        raise
    except BaseException:
        _unlock(root, work.lock)
        raise
    release(work)


def release(work: Work) -> None:
    """Remove what only an unfinished export needs, and let others claim root.

    Raises:
        ExportError: if root is not the folder that was claimed any more.
        OSError: if something cannot be removed.
    """
    _remove_work_and_unlock(work.root, work.lock)


def tidy(root: Path) -> None:
    """Remove what a job that was stopped just after its commit left beside a finished export.

    What another job holds, or what cannot be removed, is left there.

    Raises:
        ExportError: if .work is a link.
    """
    _refuse_link(root)
    lock = FileLock(root / LOCK)
    with suppress(OSError, ExportError, Timeout):
        if (root / WORK).exists():
            lock.acquire(timeout=0)
            disk.hold(root, root / LOCK)
            # The manifest has to outlast a power cut before the journal may go.
            disk.sync_folder(root)
            remove_work(root)
    if lock.is_locked:
        _unlock(root, lock)


def _journal(root: Path, fingerprint: dict[str, Any], overwrite: bool) -> Journal:
    """The journal to go on with: that of an unfinished job of the same fingerprint, or a new one.

    Raises:
        ExportError: if what stands at root may not be replaced.
        OSError: if something cannot be removed.
    """
    # Another job may have finished since the first check.
    if check_claim(root, overwrite=overwrite) is State.FINISHED:
        # Before anything else, so that no manifest ever stands beside files that are not its own.
        disk.remove(root / MANIFEST)
        disk.sync_folder(root)
    elif (kept := read_journal(root)) is not None:
        if kept.fingerprint == fingerprint:
            mend_journal(root)
            return kept
        if not overwrite:
            raise other_job(root, kept.fingerprint, fingerprint)
    remove_strays(root, ())
    return start_journal(root, fingerprint)


def _refuse_link(root: Path) -> None:
    """Raise ExportError if .work is a link: what it leads to is not ours."""
    if (root / WORK).is_symlink():
        raise ExportError(f"--out {root / WORK} is a link; remove it or give another folder")


def _folders_to_make(root: Path) -> tuple[Path, ...]:
    """Root, unless it stands there empty, and the folders above it that are missing."""
    try:
        folders = [root] if os.listdir(root) else []
    except (FileNotFoundError, NotADirectoryError):
        folders = [root]
    place = root.parent
    while not place.exists():
        folders.append(place)
        place = place.parent
    return tuple(folders)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, up to the first that is not empty or cannot be removed."""
    with suppress(OSError):
        for folder in folders:
            if folder.is_dir():
                disk.remove_folder(folder)


def _remove_work_and_unlock(root: Path, lock: FileLock) -> None:
    try:
        remove_work(root)
    finally:
        _unlock(root, lock)


def _unlock(root: Path, lock: FileLock) -> None:
    disk.let_go(root)
    lock.release()


def _leave(root: Path, lock: FileLock, folders: tuple[Path, ...]) -> None:
    """Let go of what could not be claimed, and remove what was made for it."""
    if lock.is_locked:
        with suppress(OSError, ExportError):
            # Another job may have finished since the first look: nothing stays beside its export.
            nothing_done = os.listdir(root) == [WORK] and not (root / JOURNAL).exists()
            if nothing_done or (root / MANIFEST).exists():
                remove_work(root)
        _unlock(root, lock)
    _remove_empty((root / WORK, *folders))


def _is_of_another_job(root: Path, error: OSError) -> bool:
    """Whether an error in claiming root comes of what another job makes or removes meanwhile."""
    within = error.filename is not None and root in Path(error.filename).parents
    strange = os.path.lexists(root / WORK) and not (root / WORK).is_dir()
    return within and not strange and isinstance(error, FileNotFoundError | FileExistsError)


def _say_who_holds(root: Path) -> None:
    if os.path.lexists(root / HOLDER):  # perhaps a stranger's link or FIFO
        disk.remove(root / HOLDER)
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    with disk.create(root / HOLDER) as file:
        text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        write_all(file, text.encode())


def _holder(root: Path) -> str:
    """Who holds the lock, as it said itself; who has only just taken it gets time to say so."""
    give_up = time.monotonic() + HOLDER_SECONDS
    while True:
        with (
            suppress(OSError, ExportError, UnicodeDecodeError),
            open_regular(root / HOLDER) as file,
        ):
            if said := file.read(200).decode():
                return said
        if time.monotonic() > give_up:
            return "another job"
        time.sleep(0.02)
