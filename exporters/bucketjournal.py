""".work/journal/NNNNNN-XXXX in a bucket: the lines of a journal, each a small object.

The lines are those of exporters/journal.py, in the order of their names; those of files also tell
the version that the store gave to the file. XXXX are digits of the run that wrote the line. There
is no lock: `.work/holder` says whose run goes on, and any other one stops at its next line.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporters.bucket import Bucket, each
from exporters.errors import ExportError
from exporters.journal import JOURNAL, Journal, line_of, summed_up, whole_lines
from exporters.manifest import GARBLED, FileEntry
from exporters.strays import HOLDER

log = logging.getLogger(__name__)


class BucketJournal(Journal):
    """A journal of files that are made at root, on this machine, and delivered to a bucket."""

    def __init__(self, root: Path, bucket: Bucket, fingerprint: dict[str, Any]) -> None:
        super().__init__(root, fingerprint)
        self.bucket = bucket
        self.versions: dict[str, str | None] = {}  # of files, by name
        self.run = secrets.token_hex(8)
        self.lines = 0  # the number of the next one
        self._writing = threading.Lock()

    def hold(self) -> None:
        """Take the export over from whatever run has it.

        Raises:
            ExportError: if the bucket cannot be written.
        """
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        said = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        (self.bucket / HOLDER).put(f"{said}\n{self.run}\n".encode())

    def check_held(self) -> None:
        """Raise ExportError if another run took the export over, or finished it."""
        held = (self.bucket / HOLDER).read_all()
        who, _, run = (held or b"").decode("utf-8", "replace").partition("\n")
        if run.strip() == self.run:
            return
        taken = f"taken over by {who}" if held else "finished or removed by another run"
        raise ExportError(
            f"--out {self.bucket} was {taken}; this run stops, and what stands there is left alone"
        )

    def check_finished(self) -> None:
        """Raise ExportError if another run took the export over, or wrote to a file of it."""
        self.check_held()
        there = self.bucket.list()
        for name in self.files:
            if name not in there or there[name].version != self.versions[name]:
                raise ExportError(
                    f"{self.bucket / name} was removed or changed after it was written; "
                    "give the same command again to make it again"
                )

    def add_file(self, entry: FileEntry, details: Any = None, *, delivered: bool = False) -> None:
        """Note that a file is finished, once it is in the bucket with all its bytes.

        Shards are then removed from this machine; all else is read again by later stages.

        Args:
            delivered: whether it is there already; if not, root/NAME is uploaded.

        Raises:
            ExportError: if the bucket cannot be written, the file is not whole there, or another
                run took the export over.
        """
        place = self.bucket / entry.name
        if not delivered:
            self.check_held()  # an upload takes its time, and replaces what stands there
            place.upload(self.root / entry.name)
        stored = place.look()
        if stored is None or stored.bytes != entry.bytes:
            found = "is not there" if stored is None else f"has {stored.bytes} bytes"
            raise ExportError(
                f"{place} {found} after {entry.bytes} bytes were written; "
                "give the same command again"
            )
        self._append({"file": asdict(entry), "details": details, "version": stored.version})
        self._take_file(entry, details)
        self.versions[entry.name] = stored.version
        if entry.kind == "windows" and not delivered:
            (self.root / entry.name).unlink()

    def restart(self) -> None:
        """Begin anew, with nothing done.

        Raises:
            ExportError: if the bucket cannot be written.
        """
        self.bucket.remove(line_names(self.bucket.list()))
        self.lines = 0
        self._append({"fingerprint": self.fingerprint})
        for known in (self.files, self.forgotten, self.details, self.notes, self.versions):
            known.clear()

    def take(self, line: dict[str, Any]) -> None:
        super().take(line)
        if "file" in line:
            self.versions[line["file"]["name"]] = line["version"]

    def _append(self, line: dict[str, Any]) -> None:
        with self._writing:
            self.check_held()
            place = self.bucket / f"{JOURNAL}/{self.lines:06d}-{self.run[:4]}"
            place.put(line_of(line))
            self.lines += 1
        log.info("journal: %s", summed_up(line))


def line_names(there: Iterable[str]) -> list[str]:
    """The names of the journal's lines among those of objects, in order."""
    return sorted(name for name in there if name.startswith(f"{JOURNAL}/"))


def read_bucket_journal(root: Path, bucket: Bucket, names: list[str]) -> BucketJournal | None:
    """The journal whose lines have these names; None where there is none, or one without sense.

    Raises:
        ExportError: if a line cannot be read.
    """
    written = each(lambda name: (bucket / name).read_all() or b"", names)
    lines = whole_lines(b"".join(written))
    try:
        journal = BucketJournal(root, bucket, next(lines)[0]["fingerprint"])
        for line, _ in lines:
            journal.take(line)
        journal.lines = 1 + int(names[-1].removeprefix(f"{JOURNAL}/").partition("-")[0])
    except (StopIteration, RecursionError, *GARBLED):
        return None
    return journal if isinstance(journal.fingerprint, dict) else None
