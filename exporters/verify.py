"""Checks a committed export against its own hashes and its manifest, in plain reads."""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporters.errors import ExportError
from exporters.files import sha256_of
from exporters.folder import WORK
from exporters.manifest import HASHES, MANIFEST, RUN, FileEntry, Manifest, read_manifest
from exporters.safefile import read_header


@dataclass(frozen=True)
class Findings:
    """What verify checked and everything that it found wrong, each with the file's name."""

    files: int
    bytes: int
    problems: tuple[str, ...]


def bytes_to_check(root: Path) -> int:
    """The bytes that verify will read, for a progress bar."""
    return sum(entry.bytes for entry in read_manifest(root).files)


def verify(root: Path, advance: Callable[[int], None]) -> Findings:
    """Check every file's bytes against SHA256SUMS and every tensor against the manifest.

    Also found are files that are missing or extra, and gaps or overlaps in the tokens and windows
    that the files cover. `advance` is told of bytes as they are checked.

    Raises:
        ExportError: if root holds no committed export, or its manifest cannot be read.
    """
    manifest = read_manifest(root)
    problems: list[str] = []
    hashes = _read_hashes(root, problems)
    listed = {entry.name: entry for entry in manifest.files}
    if len(listed) < len(manifest.files):
        problems.append(f"{MANIFEST}: a file stands in it twice")
    problems += _coverage("tokens", manifest.tokens["count"], manifest)
    if not manifest.compact or manifest.windows["stride"] is None:
        problems += _coverage("windows", manifest.windows["count"], manifest)
    if manifest.compact and len(manifest.of_kind("tables")) != 1:
        problems.append(f"{MANIFEST}: a compact export has one file of tables")
    for name in sorted({*hashes, *listed, MANIFEST} - {HASHES}):
        path = root / name
        if name not in hashes:
            problems.append(f"{name}: not in {HASHES}")
        if name not in listed and name != MANIFEST:
            problems.append(f"{name}: in {HASHES}, but not in {MANIFEST}")
        if not _is_plain_file(root, path):
            problems.append(f"{name}: missing")
            continue
        try:
            size = path.stat().st_size
            if name in listed and size != listed[name].bytes:
                problems.append(f"{name}: has {size} bytes, not {listed[name].bytes}")
                advance(listed[name].bytes)
                continue
            found = sha256_of(path)
            if name in hashes and found != hashes[name]:
                problems.append(f"{name}: its bytes do not match the hash in {HASHES}")
            elif name in listed:
                problems += _check_tensors(path, listed[name], found)
        except OSError as error:
            problems.append(f"{name}: could not be read: {error.strerror}")
        if name in listed:
            advance(listed[name].bytes)
    known = {*hashes, *listed, MANIFEST, HASHES, RUN}
    problems += [
        f"{name}: extra, not part of the export" for name in _files_below(root) if name not in known
    ]
    return Findings(len(listed) + 1, sum(entry.bytes for entry in manifest.files), tuple(problems))


def _read_hashes(root: Path, problems: list[str]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    try:
        text = (root / HASHES).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        problems.append(f"{HASHES}: missing or unreadable")
        return hashes
    for number, line in enumerate(text.splitlines(), 1):
        sha256, gap, name = line.partition("  ")
        if not gap or len(sha256) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{HASHES}: line {number} is not a hash and a name")
        elif name in hashes:
            problems.append(f"{HASHES}: {name} stands in it twice")
        else:
            hashes[name] = sha256
    return hashes


def _check_tensors(path: Path, entry: FileEntry, sha256: str) -> list[str]:
    """What the manifest says of one file, against the file."""
    problems = []
    if sha256 != entry.sha256:
        problems.append(f"{entry.name}: its bytes do not match the hash in {MANIFEST}")
    try:
        header = read_header(path)
    except ExportError as error:
        return [*problems, f"{entry.name}: {error}"]
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


def _coverage(kind: str, total: int, manifest: Manifest) -> list[str]:
    """Whether the files of a kind cover 0 to total - 1 once each, in order."""
    problems = []
    expected = 0
    for entry in manifest.of_kind(kind):
        if entry.first != expected:
            problems.append(f"{entry.name}: begins at {kind} {entry.first}, not {expected}")
        lengths = [entry.tensors[name]["shape"][:1] for name in _counted(entry)]
        if any(length != [entry.count] for length in lengths):
            problems.append(f"{entry.name}: its tensors do not have {entry.count} {kind}")
        expected = entry.first + entry.count
    if expected != total:
        problems.append(f"{MANIFEST}: its files hold {expected} {kind}, but it says {total}")
    return problems


def _counted(entry: FileEntry) -> list[str]:
    """The tensors whose first dimension is the number of tokens or windows of the file."""
    return [name for name in entry.tensors if name != "document_starts"]


def _is_plain_file(root: Path, path: Path) -> bool:
    """Whether path is a regular file inside root, reached through no link."""
    try:
        inside = path.resolve() == root.resolve() / path.relative_to(root)
        return inside and stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _files_below(root: Path) -> list[str]:
    """Every file below root but those that only an unfinished export needs."""
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if not name.startswith(f"{WORK}/"))
