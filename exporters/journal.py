""".work/journal: what of an unfinished export is done, a line for each finished file.

Every line is 16 digits of the SHA-256 of what follows them, a space, and a JSON object. The first
holds the fingerprint of the job. Others hold a file with what is known once it is finished, or a
note. A line is synced before the next begins, so that only the last can be torn.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporters import disk
from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.files import not_written, write_all, write_text
from exporters.manifest import GARBLED, FileEntry, file_entry

log = logging.getLogger(__name__)

JOURNAL = ".work/journal"


class Journal:
    """What is done of the export at root, as its journal says; threads may add to it."""

    def __init__(self, root: Path, fingerprint: dict[str, Any]) -> None:
        self.root = root
        self.fingerprint = fingerprint
        self.files: dict[str, FileEntry] = {}
        self.forgotten: dict[str, FileEntry] = {}
        self.details: dict[str, Any] = {}  # of files, by name, forgotten ones too
        self.notes: dict[str, Any] = {}
        self._adding = threading.Lock()
        self._torn: OSError | None = None  # of the append that failed, perhaps half way

    def add_file(self, entry: FileEntry, details: Any = None, *, delivered: bool = False) -> None:
        """Note that a file is finished, with anything that JSON can hold.

        Args:
            delivered: whether it is at the place of the export already, which that of a folder
                always is.

        Raises:
            ExportError: if the journal cannot be written.
        """
        self._append({"file": asdict(entry), "details": details})
        self._take_file(entry, details)

    def add_note(self, name: str, value: Any) -> None:
        """Note anything that JSON can hold, by a name.

        Raises:
            ExportError: if the journal cannot be written.
        """
        self._append({"note": name, "value": value})
        self.notes[name] = value

    def restart(self) -> None:
        """Begin anew, with nothing done.

        Raises:
            ExportError: if the journal cannot be written.
        """
        write_text(self.root, JOURNAL, line_of({"fingerprint": self.fingerprint}).decode())
        log.info("journal: begun")
        for known in (self.files, self.forgotten, self.details, self.notes):
            known.clear()

    def forget(self, name: str) -> None:
        """Take a file for not done; it will be noted again. Its details are still known."""
        self.forgotten[name] = self.files.pop(name)

    def take(self, line: dict[str, Any]) -> None:
        """Read a line after the first; raises one of GARBLED where it is none."""
        if "note" in line:
            self.notes[line["note"]] = line["value"]
        else:
            self._take_file(file_entry(line["file"]), line["details"])

    def _take_file(self, entry: FileEntry, details: Any) -> None:
        self.files[entry.name] = entry
        self.details[entry.name] = details

    def check_finished(self) -> None:
        """Raise ExportError if another run changed what is done, which a lock prevents here."""

    def _append(self, line: dict[str, Any]) -> None:
        path = self.root / JOURNAL
        with self._adding:
            if self._torn is not None:  # what follows a torn line would not be read
                raise not_written(path, self._torn)
            try:
                with disk.open_end(path) as file:
                    write_all(file, line_of(line))
                    disk.sync(file)
            except OSError as error:
                self._torn = error
                raise not_written(path, error) from error
        log.info("journal: %s", summed_up(line))


def start_journal(root: Path, fingerprint: dict[str, Any]) -> Journal:
    """Begin the journal of a job.

    Raises:
        ExportError: if it cannot be written.
    """
    journal = Journal(root, fingerprint)
    journal.restart()
    return journal


def read_journal(root: Path) -> Journal | None:
    """The journal of an unfinished export; None where there is none, or one that says no sense."""
    path = root / JOURNAL
    if path.is_symlink() or not path.is_file():
        return None
    lines = whole_lines(path.read_bytes())
    try:
        journal = Journal(root, next(lines)[0]["fingerprint"])
        for line, _ in lines:
            journal.take(line)
    except (StopIteration, RecursionError, *GARBLED):
        return None
    return journal if isinstance(journal.fingerprint, dict) else None


def mend_journal(root: Path) -> None:
    """Cut off what a crash left of the last line, so that the next does not follow it.

    Raises:
        OSError: if the journal cannot be read or written.
    """
    data = (root / JOURNAL).read_bytes()
    end = max((end for _, end in whole_lines(data)), default=0)
    if end < len(data):
        with disk.open_end(root / JOURNAL) as file:
            disk.truncate(file, end)
            disk.sync(file)


def differences(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, each with the old and the new value."""
    old, new = _flat(kept), _flat(now)
    return [
        f"{name} was {_shown(old.get(name))}, now {_shown(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def other_job(out: Place, kept: dict[str, Any], now: dict[str, Any]) -> ExportError:
    """The error of an unfinished export that stands where another job is to write."""
    return ExportError(
        f"--out {out} holds an unfinished export of other options or inputs "
        f"({'; '.join(differences(kept, now))}); give what it began with, another folder, or "
        "--overwrite to start over"
    )


def whole_lines(data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Lines up to the first that is torn or damaged, each with the place where it ends."""
    end = 0
    for raw in data.splitlines(keepends=True):
        check, _, text = raw.partition(b" ")
        if not raw.endswith(b"\n") or check != _check(text):
            return
        end += len(raw)
        yield json.loads(text), end


def line_of(value: dict[str, Any]) -> bytes:
    """An object as a line, with its check."""
    text = json.dumps(value).encode() + b"\n"
    return _check(text) + b" " + text


def summed_up(line: dict[str, Any]) -> str:
    """What a line says, for the log: it may name thousands of files."""
    if "file" in line:
        return f"{line['file']['name']} is finished, {line['file']['bytes']} bytes"
    return f"the note {line['note']}" if "note" in line else "begun"


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with names such as software.torch."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[prefix + name] = inner
    return flat


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
