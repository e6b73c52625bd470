"""What an unfinished export has done already: checked against its files, and taken back."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from exporters import disk
from exporters.bucketjournal import BucketJournal
from exporters.errors import ExportError
from exporters.files import blocks, copy, sha256_of
from exporters.folder import Work
from exporters.journal import JOURNAL
from exporters.manifest import FileEntry
from exporters.safefile import read_header
from exporters.strays import HOLDER, SPOOL, WEIGHTS, WORK, remove_objects, remove_strays
from exporters.tablefile import TABLES
from exporters.windows import STARTS

KINDS = {
    "tokens": "tokens", "shards": "windows", STARTS: "starts", WEIGHTS: "weights",
    TABLES: "tables", f"{WORK}/{TABLES}": "tables",
}  # fmt: skip
"""Files and folders of ours -> the kind of what they hold."""

COUNTED = {"tokens": "input_ids", "windows": "window_start", "starts": "window_start"}
"""kind -> the tensor that holds what the entry counts."""

UNREAD = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of reading that say nothing of a file: it may be whole."""


def check_kept(work: Work, advance: Callable[[int], None]) -> list[str]:
    """Check what the journal says is done, and remove what else is ours but inputs.

    `advance` is told of bytes as they are read. Returns the names of files that are missing or not
    as they were written, which count as not done.

    Raises:
        ExportError: if a file may not be read, or one cannot be removed.
    """
    entries = list(work.journal.files.values())
    if isinstance(work.journal, BucketJournal):
        is_whole = _objects_whole(work.journal, advance)
    else:
        is_whole = partial(_is_whole, work.root, advance=advance)
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="check") as pool:
        whole = pool.map(is_whole, entries)
        damaged = [entry.name for entry, good in zip(entries, whole, strict=True) if not good]
    drop(work, damaged)
    return damaged


def kind_of(name: str) -> str | None:
    """The kind of what a file of ours holds; None where it is none of ours."""
    return KINDS.get(name) or KINDS.get(name.partition("/")[0])


def is_as_said(work: Work, entry: FileEntry) -> bool:
    """Whether a file that is whole holds what its entry in the journal says."""
    kind = entry.kind
    place = work.out if kind == "windows" else work.root
    try:
        header = read_header(place / entry.name)
    except (ExportError, OSError):
        return False
    tensors = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        for name, tensor in header.tensors.items()
    }
    if kind != kind_of(entry.name) or entry.tensors != tensors:
        return False
    if kind not in COUNTED:
        return entry.first == entry.count == 0
    return COUNTED[kind] in tensors and tensors[COUNTED[kind]]["shape"] == [entry.count]


def drop(work: Work, names: Iterable[str]) -> None:
    """Take files for not done, and remove them with everything else that is ours and not done.

    Raises:
        ExportError: if a file cannot be removed.
    """
    for name in names:
        work.journal.forget(name)
    _remove_strays(work)


def discard(work: Work) -> None:
    """Take nothing for done any more, so that `claimed` removes it all when its block fails.

    For errors that the same command can only come to again.
    """
    work.journal.files.clear()
    if (work.root / SPOOL).is_file():
        with suppress(OSError, ExportError):  # the error that follows says more
            disk.remove(work.root / SPOOL)


def start_over(work: Work) -> None:
    """Remove what is done, and go on as a job that has just begun.

    Raises:
        ExportError: if something cannot be removed or written.
    """
    work.journal.restart()
    _remove_strays(work)


def _remove_strays(work: Work) -> None:
    """As remove_strays, but keeps the copy of standard input, and raises ExportError only.

    A bucket is rid of what is not finished, too.
    """
    finished = work.journal.files
    if work.bucket is not None:
        remove_objects(work.bucket, [HOLDER, f"{JOURNAL}/", *finished])
    try:
        remove_strays(work.root, {SPOOL, *finished})
    except OSError as error:
        raise ExportError(f"{error.filename} could not be removed: {error.strerror}") from error


def _objects_whole(
    journal: BucketJournal, advance: Callable[[int], None]
) -> Callable[[FileEntry], bool]:
    """What tells whether a file is in a bucket as it was delivered there.

    That is one of the same version, or where stores tell none, of the same bytes. What later stages
    read is copied to this machine again.
    """
    there = journal.bucket.list()

    def is_whole(entry: FileEntry) -> bool:
        stored = there.get(entry.name)
        if stored is None or stored.bytes != entry.bytes:
            return False
        if stored.version != journal.versions[entry.name]:
            return False
        place = journal.bucket / entry.name
        sha256 = entry.sha256
        if entry.kind != "windows":
            sha256 = copy(place, journal.root, entry.name).sha256
        elif stored.version is None:
            sha256 = sha256_of(place)
        advance(entry.bytes)
        return sha256 == entry.sha256

    return is_whole


def _is_whole(root: Path, entry: FileEntry, advance: Callable[[int], None]) -> bool:
    """Whether a file is there, reached through no link, with the bytes that were written.

    Raises:
        ExportError: if it may not be read.
    """
    path = root / entry.name
    digest = hashlib.sha256()
    try:
        own = os.path.join(os.path.realpath(root), entry.name)
        if os.path.realpath(path) != own or path.stat().st_size != entry.bytes:
            return False
    except OSError as error:
        return _not_whole(path, error)
    read = blocks(path)
    while True:
        try:
            block = next(read, b"")
        except ExportError:
            return False
        except OSError as error:
            return _not_whole(path, error)
        if not block:
            return digest.hexdigest() == entry.sha256
        digest.update(block)
        advance(len(block))  # whose own errors say nothing of the file


def _not_whole(path: Path, error: OSError) -> bool:
    """False, where an error means that a file is not as it was written.

    Raises:
        ExportError: if it may be, but could not be read.
    """
    if error.errno in UNREAD:
        raise ExportError(
            f"{path} could not be read: {error.strerror}; what is finished is kept, so put that "
            "right and give the same command again"
        ) from error
    return False
