"""manifest.json: what an export holds. It is written last, and with it the export is committed."""

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from exporters.bucket import Bucket, Place
from exporters.errors import DamageError, ExportError
from exporters.files import has_size, record_of_bytes, write_text
from exporters.manifestchecks import SECTIONS, is_count, is_list_of, is_text
from exporters.safefile import open_regular, own_file

FORMAT = "qkvmill"
FORMAT_VERSION = 1  # docs/format.md says what raises it
MANIFEST = "manifest.json"
HASHES = "SHA256SUMS"
RUN = "run.json"
MAX_MANIFEST_BYTES = 512 << 20

GARBLED = (AttributeError, ArithmeticError, LookupError, TypeError, ValueError)
"""What reading JSON of the wrong shape raises."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A safetensors file of an export: its hash, its tensors, and the stretch that it covers.

    `first` and `count` are tokens of the stream for kind "tokens", windows for the kinds "windows"
    and "starts", and 0 for the others.
    """

    name: str
    kind: str  # "tokens", "windows", "starts", "weights" or "tables"
    bytes: int
    sha256: str
    first: int
    count: int
    tensors: dict[str, dict[str, Any]]  # name -> {"dtype": str, "shape": [int, ...]}


ENTRY_KEYS = frozenset(field.name for field in fields(FileEntry))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a committed export. Its sections are plain JSON objects.

    job         every option that shapes bytes, with its default filled in
    software    versions of what computed
    corpus      the files in order, their bytes, hashes and counts; skipped files; replaced
                sequences; bad records, the first of them listed
    tokenizer   name, hash of the vocabulary, its size
    tokens      count, documents, separators, largest id, distinct ids
    windows     count, context length, stride (None where they are random), boundaries and tail,
                padded windows and places, dropped tokens, documents too short for a window
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

    @property
    def split(self) -> bool:
        """Whether each window ends with its document."""
        return bool(self.windows["boundaries"] == "split")

    @property
    def padded(self) -> bool:
        """Whether windows have a mask, for the last of a document may have places to fill."""
        return bool(self.windows["tail"] == "pad")

    @property
    def lists_starts(self) -> bool:
        """Whether a file tells where windows begin: there is no stride, and no shard to tell it."""
        return self.split or (self.compact and self.windows["stride"] is None)

    @property
    def padding(self) -> int | None:
        """The id in places of windows that are not real; None where there are none."""
        return (self.tokenizer["end_of_text"] or 0) if self.padded else None

    def of_kind(self, kind: str) -> list[FileEntry]:
        """The files of one kind, in order."""
        return [entry for entry in self.files if entry.kind == kind]


def commit(root: Place, manifest: Manifest) -> None:
    """Write SHA256SUMS, then manifest.json: after this the export is finished.

    Raises:
        ExportError: if a file is not there with its size any more, or one cannot be written.
    """
    if (lacking := first_lacking(root, manifest.files)) is not None:
        raise ExportError(
            f"{root / lacking.name} was removed or changed after it was written; "
            "give the same command again to make it again"
        )
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    text = _shapes_on_one_line(json.dumps(document, indent=1, ensure_ascii=False)) + "\n"
    lines = hash_lines(manifest, record_of_bytes(MANIFEST, text.encode()).sha256)
    write_text(root, HASHES, "".join(lines.values()))
    write_text(root, MANIFEST, text)


def first_lacking(root: Place, entries: Iterable[FileEntry]) -> FileEntry | None:
    """The first file that is not there with its size; None where all are.

    Raises:
        ExportError: if a bucket cannot be listed.
    """
    there = root.list() if isinstance(root, Bucket) else None
    for entry in entries:
        if there is None:
            whole = has_size(root / entry.name, entry.bytes)  # type: ignore[arg-type]
        else:
            whole = entry.name in there and there[entry.name].bytes == entry.bytes
        if not whole:
            return entry
    return None


def hash_lines(manifest: Manifest, manifest_sha256: str) -> dict[str, str]:
    """The lines of SHA256SUMS by the file's name, in order, as sha256sum writes them."""
    hashes = {entry.name: entry.sha256 for entry in manifest.files} | {MANIFEST: manifest_sha256}
    return {name: f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items())}


def read_manifest(root: Place) -> Manifest:
    """The manifest of the export at root.

    Raises:
        ExportError: if root holds no committed export, or its manifest is damaged or of another
            format version.
    """
    path = root / MANIFEST
    if isinstance(root, Path) and not root.is_dir():
        raise ExportError(f"{root} is not a folder; give the folder of an export")
    try:
        with open_regular(own_file(root, MANIFEST)) as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise ExportError(f"{path} is larger than any manifest that is written")
        document = json.loads(text.decode(), parse_constant=_unknown_constant)
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
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise ExportError(
            f"{path} has format version {reprlib.repr(version)}, but this qkvmill reads versions "
            f"up to {FORMAT_VERSION}; "
            + ("install a newer qkvmill" if newer else "no release wrote it, so it is damaged")
        )
    try:
        return _from_document(document)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{path} is damaged: {error}") from error
    except GARBLED as error:
        raise ExportError(f"{path} is damaged: {error!r}") from error


@contextmanager
def garbled_is_damaged(root: Place) -> Iterator[None]:
    """Turn what a garbled manifest leads to, when its sections are used, into an ExportError.

    Of a file that is damaged, its error says what finds all that is wrong.
    """
    try:
        yield
    except DamageError as error:
        raise ExportError(f"{error}; run qkvmill verify {root}") from error
    except GARBLED as error:
        raise ExportError(f"{root / MANIFEST} is damaged: {error!r}") from error


def _shapes_on_one_line(text: str) -> str:
    """Indented JSON with its lists of numbers each on one line."""
    # A string cannot match: JSON writes its newlines as \\n.
    return re.sub(r"\[\n[\d,\s]+\]", lambda found: "".join(found[0].split()), text)


def _unknown_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _from_document(document: dict[str, Any]) -> Manifest:
    sections: dict[str, Any] = {}
    for name, checks in SECTIONS.items():
        section = document[name]
        if section is None and name in ("layer", "compute"):
            sections[name] = None
            continue
        if not isinstance(section, dict):
            raise TypeError(f"{name} is not an object")
        for key, check in checks.items():
            if key not in section:
                raise ValueError(f"{name}.{key} is missing")
            if not check(section[key]):
                raise ValueError(f"{name}.{key} is {reprlib.repr(section[key])}")
        sections[name] = section
    if sections["layer"] is None and sections["job"]["export"] != ["tokens"]:
        raise ValueError("layer is null, but more than tokens is exported")
    expand = document["expand"]
    if expand is not None and not is_list_of(is_text)(expand):
        raise TypeError("expand is no list of strings")
    return Manifest(
        **sections,
        expand=None if expand is None else tuple(expand),
        files=tuple(file_entry(_known(entry)) for entry in document["files"]),
    )


def _known(entry: Any) -> dict[str, Any]:
    """An entry without the keys of later releases."""
    return {name: value for name, value in entry.items() if name in ENTRY_KEYS}


def file_entry(entry: Any) -> FileEntry:
    """An entry from JSON; raises one of GARBLED where it is none."""
    file = FileEntry(**entry)
    texts, counts = (file.name, file.kind, file.sha256), (file.bytes, file.first, file.count)
    if not all(map(is_text, texts)) or not all(map(is_count, counts)):
        raise TypeError(f"files: {reprlib.repr(entry)}")
    place = PurePosixPath(file.name)
    plain = file.name.isprintable() and str(place) == file.name and ".." not in place.parts
    if not plain or place.is_absolute() or not file.name.endswith(".safetensors"):
        raise ValueError(f"files: the name {reprlib.repr(file.name)} is not one of an export")
    for declared in file.tensors.values():
        if not is_text(declared["dtype"]) or not is_list_of(is_count)(declared["shape"]):
            raise TypeError(f"files: {reprlib.repr(entry)}")
    return file
