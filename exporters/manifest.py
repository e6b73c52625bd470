"""manifest.json: what an export holds. It is written last, and with it the export is committed."""

import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.files import record_of_bytes, write_text

FORMAT = "qkvmill"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HASHES = "SHA256SUMS"
RUN = "run.json"
MAX_MANIFEST_BYTES = 512 << 20

GARBLED = (AttributeError, ArithmeticError, LookupError, TypeError, ValueError)
"""What reading JSON of the wrong shape raises."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A safetensors file of an export: its hash, its tensors, and the stretch that it covers.

    `first` and `count` are tokens of the stream for kind "tokens", windows for kind "windows", and
    0 for the others.
    """

    name: str
    kind: str  # "tokens", "windows", "weights" or "tables"
    bytes: int
    sha256: str
    first: int
    count: int
    tensors: dict[str, dict[str, Any]]  # name -> {"dtype": str, "shape": [int, ...]}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a committed export. Its sections are plain JSON objects.

    job         every option that shapes bytes, with its default filled in
    software    versions of what computed
    corpus      the files in order, their bytes and hashes; skipped files; replaced sequences
    tokenizer   name, hash of the vocabulary, its size
    tokens      count, documents, separators, largest id, distinct ids
    windows     count, context length, stride (None where they are random), dropped tokens
    layer       shapes, scalars and hash of the first layer, or None where none was needed
    compute     device, kernel, method, why they were chosen, and what else decides the bits
    expand      lines of Python that expand a window of a compact export, or None
    files       every safetensors file
    """

    job: dict[str, Any]
    software: dict[str, Any]
    corpus: dict[str, Any]
    tokenizer: dict[str, Any]
    tokens: dict[str, Any]
    windows: dict[str, Any]
    layer: dict[str, Any] | None
    compute: dict[str, Any] | None
    expand: tuple[str, ...] | None
    files: tuple[FileEntry, ...]

    @property
    def compact(self) -> bool:
        """Whether windows are to be computed from tables instead of read from shards."""
        return bool(self.job["artifact"] == "compact")

    def of_kind(self, kind: str) -> list[FileEntry]:
        """The files of one kind, in order."""
        return [entry for entry in self.files if entry.kind == kind]


def commit(root: Path, manifest: Manifest) -> None:
    """Write SHA256SUMS, then manifest.json: after this the export is finished."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    text = _shapes_on_one_line(json.dumps(document, indent=1, ensure_ascii=False)) + "\n"
    lines = hash_lines(manifest, record_of_bytes(MANIFEST, text.encode()).sha256)
    write_text(root, HASHES, "".join(lines.values()))
    write_text(root, MANIFEST, text)


def hash_lines(manifest: Manifest, manifest_sha256: str) -> dict[str, str]:
    """The lines of SHA256SUMS by the file's name, in order, as sha256sum writes them."""
    hashes = {entry.name: entry.sha256 for entry in manifest.files} | {MANIFEST: manifest_sha256}
    return {name: f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items())}


def read_manifest(root: Path) -> Manifest:
    """The manifest of the export at root.

    Raises:
        ExportError: if root holds no committed export, or its manifest is damaged or of another
            format version.
    """
    path = root / MANIFEST
    if not root.is_dir():
        raise ExportError(f"{root} is not a folder; give the folder of an export")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ExportError(f"{path} is not a regular file")
        if status.st_size > MAX_MANIFEST_BYTES:
            raise ExportError(f"{path} is larger than any manifest that is written")
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ExportError(
            f"{root} holds no finished export: there is no {MANIFEST}; "
            "if a run was stopped, give the same command again"
        ) from error
    except OSError as error:
        raise ExportError(f"{path} could not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ExportError(f"{path} is not the manifest of an export")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ExportError(
            f"{path} has format version {version!r}, but this qkvmill reads {FORMAT_VERSION}"
        )
    try:
        return _from_document(document)
    except GARBLED as error:
        raise ExportError(f"{path} is damaged: {error!r}") from error


@contextmanager
def garbled_is_damaged(root: Path) -> Iterator[None]:
    """Turn what a garbled manifest leads to, when its sections are used, into an ExportError."""
    try:
        yield
    except GARBLED as error:
        raise ExportError(f"{root / MANIFEST} is damaged: {error!r}") from error


def _shapes_on_one_line(text: str) -> str:
    """Indented JSON with its lists of numbers each on one line."""
    # A string cannot match: JSON writes its newlines as \\n.
    return re.sub(r"\[\n[\d,\s]+\]", lambda found: "".join(found[0].split()), text)


def _from_document(document: dict[str, Any]) -> Manifest:
    files = []
    for entry in document["files"]:
        file = FileEntry(**entry)
        if not isinstance(file.name, str) or not isinstance(file.sha256, str):
            raise TypeError(f"files: {entry!r}")
        if not all(type(n) is int and n >= 0 for n in (file.bytes, file.first, file.count)):
            raise TypeError(f"files: {entry!r}")
        parts = Path(file.name).parts
        if Path(file.name).is_absolute() or ".." in parts or not file.name.endswith(".safetensors"):
            raise ValueError(f"files: the name {file.name!r} is not one of an export")
        for declared in file.tensors.values():
            if not isinstance(declared["dtype"], str) or not isinstance(declared["shape"], list):
                raise TypeError(f"files: {entry!r}")
        files.append(file)
    sections = ("job", "software", "corpus", "tokenizer", "tokens", "windows")
    for name in sections:
        if not isinstance(document[name], dict):
            raise TypeError(f"{name} is not an object")
    for name in ("layer", "compute"):
        if document[name] is not None and not isinstance(document[name], dict):
            raise TypeError(f"{name} is neither an object nor null")
    for name, key in [("windows", "count"), ("windows", "context_length"), ("tokens", "count")]:
        if type(document[name][key]) is not int:
            raise TypeError(f"{name}.{key} is not a whole number")
    return Manifest(
        **{name: document[name] for name in sections},
        layer=document["layer"],
        compute=document["compute"],
        expand=None if document["expand"] is None else tuple(document["expand"]),
        files=tuple(files),
    )
