"""What an earlier run of the same job has done, and whether it is kept."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.folder import Work, tidy
from exporters.journal import differences
from exporters.kept import check_kept
from exporters.manifest import Manifest, garbled_is_damaged, read_manifest
from exporters.space import readable
from exporters.state import State, state_of
from jobs.fingerprint import fingerprint_of
from jobs.progress import Reporter
from kernels.method import Method

NOTE = "method"  # in the journal, once it is decided


def finished(
    root: Path,
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
    for entry in manifest.files:
        path = root / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise ExportError(
                f"{path} is missing or not whole, though the export was finished; "
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

    Args:
        found: what stood at the export's place before it was claimed.

    Raises:
        ExportError: if what is not kept cannot be removed.
    """
    if not work.journal.files:
        check_kept(work, lambda _: None)
        if found is not State.NOTHING:
            reporter.note(f"{work.root} held {found}: starting over")
        return
    with reporter.stage("check", work.kept_bytes(), "bytes") as advance:
        damaged = check_kept(work, advance)
    for name in damaged:
        reporter.note(f"{work.root / name} is not as it was written: it is made again")
    files, size = len(work.journal.files), readable(work.kept_bytes())
    reporter.note(f"{work.root} holds an unfinished export: going on, {files} files of {size} kept")


def kept_method(work: Work) -> Method | None:
    """The method that an unfinished run chose, when it may have seen another memory."""
    kept = work.journal.notes.get(NOTE)
    return None if kept is None else Method(**kept)


def keep_method(work: Work, method: Method | None) -> None:
    """Note the method, so that the run that goes on has the same."""
    if method is not None and NOTE not in work.journal.notes:
        work.journal.add_note(NOTE, asdict(method))
