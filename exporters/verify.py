"""Checks a committed export against its own hashes and its manifest, in plain reads."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from exporters.bucket import Bucket, Place
from exporters.consistency import contradictions
from exporters.coverage import misplaced_windows
from exporters.errors import ExportError
from exporters.files import sha256_of
from exporters.manifest import (
    HASHES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RUN,
    FileEntry,
    Manifest,
    garbled_is_damaged,
    hash_lines,
    read_manifest,
)
from exporters.safefile import open_regular, read_header
from exporters.strays import WORK

log = logging.getLogger(__name__)

FILE, FOLDER, LINK, SPECIAL = "a file", "a folder", "a link", "a special file"


@dataclass(frozen=True)
class Findings:
    """What verify checked and everything that it found wrong, each with the file's name."""

    files: int
    bytes: int
    problems: tuple[str, ...]


def bytes_to_check(root: Place) -> int:
    """The bytes that verify will read, for a progress bar.

    Raises:
        ExportError: as `verify`.
    """
    return sum(entry.bytes for entry in _manifest(root).files)


def verify(root: Place, advance: Callable[[int], None]) -> Findings:
    """Check every file's bytes against its hash and every tensor against the manifest.

    SHA256SUMS must be what follows from the manifest and its hash, byte for byte. Also found are
    files and folders that are missing or extra, gaps or overlaps in the tokens and windows that the
    files cover, windows that do not end with their document, and wrong masks. Nothing but plain
    files of the export is opened. `advance` is told of bytes as they are checked.

    Raises:
        ExportError: if root holds no committed export, or its manifest cannot be read.
        OSError: if a folder of it cannot be listed.
    """
    manifest = _manifest(root)
    with garbled_is_damaged(root):
        files = {entry.name for entry in manifest.files} | {MANIFEST, HASHES}
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        there = _tree(root, folders)
        problems = [*contradictions(manifest), *_misplaced(there, files, folders)]
        if there.get(HASHES) == FILE:
            problems += _check_sums(root, manifest)
        for entry in manifest.files:
            if there.get(entry.name) == FILE:
                problems += _check_file(root / entry.name, entry)
            advance(entry.bytes)
        if not problems:
            problems = misplaced_windows(root, manifest)
    return Findings(
        len(manifest.files) + 1, sum(entry.bytes for entry in manifest.files), tuple(problems)
    )


def _manifest(root: Place) -> Manifest:
    """The manifest, unless a link stands in its place."""
    path = root / MANIFEST
    if isinstance(path, Path) and path.is_symlink():
        raise ExportError(f"{path} is a link, not a file of the export")
    return read_manifest(root)


def _tree(root: Place, folders: set[str]) -> dict[str, str]:
    """What stands below root, by name, looked at and not opened; only `folders` are entered."""
    if isinstance(root, Bucket):
        return _tree_of(root.list(), folders)
    there = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                there[name] = _kind(entry)
                if name in folders and there[name] == FOLDER:
                    waiting.append(f"{name}/")
    return there


def _tree_of(names: Iterable[str], folders: set[str]) -> dict[str, str]:
    """As _tree, of the names of objects."""
    there = {}
    for name in names:
        for parent in [str(parent) for parent in reversed(PurePosixPath(name).parents)][1:]:
            there[parent] = FOLDER
            if parent not in folders:
                break
        else:
            there[name] = FILE
    return there


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return FILE if entry.is_file(follow_symlinks=False) else SPECIAL


def _misplaced(there: dict[str, str], files: set[str], folders: set[str]) -> list[str]:
    """What is missing, extra, or of another kind than it should be."""
    problems = [f"{name}: missing" for name in sorted(files - there.keys())]
    for name, kind in sorted(there.items()):
        expected = FILE if name in files or name == RUN else FOLDER if name in folders else None
        if name == WORK and kind == FOLDER:
            continue  # left by a commit that was cut short after the manifest
        if expected is None:
            problems.append(f"{name}: extra, {kind} that is not part of the export")
        elif kind != expected:
            problems.append(f"{name}: is {kind}, not {expected}")
    return problems


def _check_sums(root: Place, manifest: Manifest) -> list[str]:
    """SHA256SUMS against the manifest and the manifest's own hash, byte for byte."""
    try:
        lines = hash_lines(manifest, sha256_of(root / MANIFEST))
        with open_regular(root / HASHES) as file:
            found = file.read(MAX_MANIFEST_BYTES)
    except OSError as error:
        return [f"{HASHES} or {MANIFEST}: could not be read: {error.strerror}"]
    expected = {name: line.encode() for name, line in lines.items()}
    if found == b"".join(expected.values()):
        return []
    present = set(found.splitlines(keepends=True))
    problems = [
        f"{MANIFEST}: its bytes do not match the hash in {HASHES}"
        if name == MANIFEST
        else f"{HASHES}: lacks the line of {name} with the hash in {MANIFEST}"
        for name, line in expected.items()
        if line not in present
    ]
    return problems or [f"{HASHES}: holds more than a line for each file, or in another order"]


def _check_file(path: Place, entry: FileEntry) -> list[str]:
    """What the manifest says of one file, against the file."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
        if size != entry.bytes:
            return [f"{entry.name}: has {size} bytes, not {entry.bytes}"]
        if sha256_of(path) != entry.sha256:
            return [f"{entry.name}: its bytes do not match the hash in {MANIFEST}"]
        log.info("%s: %d bytes match their hash", path, size)
        header = read_header(path)
    except OSError as error:
        return [f"{entry.name}: could not be read: {error.strerror}"]
    except ExportError as error:
        return [f"{entry.name}: {error}"]
    problems = []
    for name in sorted({*header.tensors, *entry.tensors}):
        if name not in header.tensors:
            problems.append(f"{entry.name}: lacks the tensor {name}")
        elif name not in entry.tensors:
            problems.append(f"{entry.name}: holds the tensor {name}, unknown to {MANIFEST}")
        else:
            found = header.tensors[name]
            declared = entry.tensors[name]
            if (found.dtype, list(found.shape)) != (declared["dtype"], declared["shape"]):
                problems.append(
                    f"{entry.name}: {name} is {found.dtype} {list(found.shape)}, "
                    f"not {declared['dtype']} {declared['shape']}"
                )
    return problems
