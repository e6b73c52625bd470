"""What an earlier run of the same job has done, and whether it is kept."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from exporters.bucket import Place
from exporters.claims import tidy
from exporters.errors import ExportError
from exporters.folder import Work
from exporters.journal import JOURNAL, differences
from exporters.kept import check_kept, drop, is_as_said, kind_of, start_over
from exporters.manifest import Manifest, first_lacking, garbled_is_damaged, read_manifest
from exporters.space import readable
from exporters.state import State, state_of
from jobs.compute import MADE_AGAIN
from jobs.config import JobConfig
from jobs.fingerprint import fingerprint_of
from jobs.progress import Reporter
from jobs.stream import WRONG
from kernels.method import Method

log = logging.getLogger(__name__)

NOTE = "method"  # in the journal, once it is decided


def finished(
    root: Place,
    job: dict[str, Any],
    changed_input: Callable[[Manifest], object],
    reporter: Reporter,
) -> Manifest | None:
    """The manifest of the finished export at root if this very job made it; None where none is.

    What a job that was stopped after its commit left there is removed. The files are looked
    at by name and size only: `verify` is what reads their bytes.

    Args:
        job: the job's fingerprint.
        changed_input: what of the inputs has other bytes than when an export was made, or None.

    Raises:
        ExportError: if another job made it, with what differs, or a file of it is missing or of
            another size; or if root holds something that is not ours.
    """
    if state_of(root) is not State.FINISHED:
        return None
    manifest = read_manifest(root)
    with garbled_is_damaged(root):
        changed = differences(fingerprint_of(manifest), json.loads(json.dumps(job)))
        if not changed and (found := changed_input(manifest)):
            changed = [f"{found} has other bytes"]
    if changed:
        raise ExportError(
            f"--out {root} holds a finished export of other options or inputs "
            f"({'; '.join(changed)}); give another folder, or --overwrite to replace it"
        )
    if (lacking := first_lacking(root, manifest.files)) is not None:
        raise ExportError(
            f"{root / lacking.name} is missing or not whole, though the export was finished; "
            "give --overwrite to make it again"
        )
    # Only now, for a journal beside a manifest that is not its own may be all that is known.
    tidy(root)
    reporter.note(
        f"{root} holds this very export already, finished: nothing is done; its files are there "
        "with their sizes, and qkvmill verify checks their bytes"
    )
    return manifest


def say_what_is_kept(work: Work, found: State, reporter: Reporter) -> None:
    """Check what an unfinished run has done, and say how much of it is kept.

    A journal whose lines are whole, but do not say what the files hold, is not believed at all.

    Args:
        found: what stood at the export's place before it was claimed.

    Raises:
        ExportError: if what is not kept cannot be removed.
    """
    journal = work.journal
    kinds = all(entry.kind == kind_of(entry.name) for entry in journal.files.values())
    if not kinds or not _are_notes(journal.notes):
        _disbelieve(work, reporter)
    elif not journal.files:
        check_kept(work, lambda _: None)
        if found is not State.NOTHING:
            reporter.note(f"{work.out} held {found}: starting over")
    else:
        _check_files(work, reporter)


def _check_files(work: Work, reporter: Reporter) -> None:
    """Keep the files that are as they were written, and say so."""
    with reporter.stage("check", work.kept_bytes(), "bytes") as advance:
        damaged = check_kept(work, advance)
    strange = [entry for entry in work.journal.files.values() if not is_as_said(work, entry)]
    # Nothing is made from shards; what was made from other files is not known to be right.
    if any(not entry.name.startswith("shards/") for entry in strange):
        _disbelieve(work, reporter)
        return
    drop(work, [entry.name for entry in strange])
    for name in (*damaged, *(entry.name for entry in strange)):
        reporter.note(f"{work.out / name} {MADE_AGAIN}")
    for entry in work.journal.files.values():
        log.info("kept %s: %d bytes, as they were written", entry.name, entry.bytes)
    files, size = len(work.journal.files), readable(work.kept_bytes())
    reporter.note(f"{work.out} holds an unfinished export: going on, {files} files of {size} kept")


def _disbelieve(work: Work, reporter: Reporter) -> None:
    reporter.note(f"{work.out / JOURNAL} {WRONG}: starting over")
    start_over(work)


def kept_method(work: Work, config: JobConfig) -> Method | None:
    """The method that an unfinished run chose, when it may have seen another memory."""
    kept = work.journal.notes.get(NOTE)
    if kept is None or "qkv" not in config.export or config.method not in ("auto", kept["name"]):
        return None
    return Method(**kept)


def _are_notes(notes: dict[str, Any]) -> bool:
    """Whether the note of the method, if there is one, is that of one."""
    kept = notes.get(NOTE)
    if kept is None:
        return True
    if not isinstance(kept, dict) or kept.keys() != {"name", "reason"}:
        return False
    return kept["name"] in ("direct", "tables") and isinstance(kept["reason"], str)


def keep_method(work: Work, method: Method | None) -> None:
    """Note the method, so that the run that goes on has the same."""
    if method is not None and NOTE not in work.journal.notes:
        work.journal.add_note(NOTE, asdict(method))
