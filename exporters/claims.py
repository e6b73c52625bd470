"""The place of an export, claimed for the time of a job: a folder by its lock, or a bucket.

In a bucket the run that came last goes on. It makes files in a folder of its own on this machine,
from where each is uploaded whole; what of the bucket's is read again is downloaded to there first.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from exporters import folder
from exporters.bucket import Bucket, Place
from exporters.bucketjournal import BucketJournal, line_names, read_bucket_journal
from exporters.errors import ExportError
from exporters.folder import Work
from exporters.journal import other_job
from exporters.manifest import MANIFEST
from exporters.state import State, check_claim
from exporters.strays import HOLDER, LOCK, WORK, remove_objects
from kernels.errors import QkvmillError


@contextmanager
def claimed(
    out: Place, fingerprint: dict[str, Any], *, overwrite: bool, scratch: Path | None = None
) -> Iterator[Work]:
    """Claim out for the time of the block, which commits an export there.

    If the block raises a QkvmillError, what its journal names is kept for the next time; where that
    is nothing, all that is ours is removed again.

    Args:
        scratch: the folder, instead of the system's, in which files for a bucket are made.

    Raises:
        ExportError: if out cannot be claimed or written to, or holds an unfinished export of
            another fingerprint; and as exporters/folder.py and exporters/bucketjournal.py say.
    """
    if isinstance(out, Path):
        with folder.claimed(out, fingerprint, overwrite=overwrite) as work:
            yield work
        return
    with _scratch_folder(scratch) as root:
        work = _claim(out, root, fingerprint, overwrite)
        try:
            yield work
        except QkvmillError:
            # What could not be written may be impossible to remove too: the first error is the one.
            with suppress(ExportError):
                if not work.journal.files:
                    work.journal.check_finished()
                    remove_objects(out)
            raise
        _remove_work(out)


def tidy(out: Place) -> None:
    """Remove what a job that was stopped just after its commit left beside a finished export.

    Raises:
        ExportError: if .work is a link.
    """
    if isinstance(out, Path):
        folder.tidy(out)
    else:
        with suppress(ExportError):
            _remove_work(out)


def _claim(bucket: Bucket, root: Path, fingerprint: dict[str, Any], overwrite: bool) -> Work:
    """Make a bucket ours, with what an unfinished job of the same fingerprint has done already."""
    fingerprint = json.loads(json.dumps(fingerprint))
    found = check_claim(bucket, overwrite=overwrite)
    if found is State.UNFINISHED and not overwrite:
        # Before anything is written, so that a run that is refused stops no other.
        first = read_bucket_journal(root, bucket, line_names(bucket.list())[:1])
        if first is not None and first.fingerprint != fingerprint:
            raise other_job(bucket, first.fingerprint, fingerprint)
    journal = BucketJournal(root, bucket, fingerprint)
    journal.hold()
    try:
        if found is State.FINISHED:
            # Before anything else, so that no manifest ever stands beside files not its own.
            bucket.remove([MANIFEST])
        elif (kept := read_bucket_journal(root, bucket, line_names(bucket.list()))) is not None:
            if kept.fingerprint == fingerprint:
                kept.run = journal.run
                return Work(root, FileLock(root / LOCK), kept, bucket=bucket)
            if not overwrite:
                raise other_job(bucket, kept.fingerprint, fingerprint)
        remove_objects(bucket, [HOLDER])
        journal.restart()
    except ExportError:
        if found is State.NOTHING:
            with suppress(ExportError):
                remove_objects(bucket)
        raise
    return Work(root, FileLock(root / LOCK), journal, bucket=bucket)


@contextmanager
def _scratch_folder(above: Path | None) -> Iterator[Path]:
    """A new folder, in another one or in the system's for such, that goes when the block ends.

    Raises:
        ExportError: if it cannot be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="qkvmill-", dir=above))
    except OSError as error:
        raise ExportError(
            f"--scratch {above or tempfile.gettempdir()} could not be written: {error.strerror}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_work(bucket: Bucket) -> None:
    bucket.remove(name for name in bucket.list() if name.startswith(f"{WORK}/"))
