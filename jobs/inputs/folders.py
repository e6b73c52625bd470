"""A folder -> the files in it that are read."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporters.manifest import MANIFEST
from jobs.errors import CorpusError
from jobs.inputs.kinds import kind_of

Parts = tuple[str, ...]  # of a path, relative to the folder

TOKENS = "tokens"
"""The folder of an export, and the start of the names, that hold a token stream."""

PART = re.compile(r"tokens-\d{5,}\.safetensors")


def files_below(folder: Path, apart: os.stat_result | None) -> list[Parts]:
    """The files below a folder, sorted; hidden ones (".name") and those in hidden folders are none.

    Links to folders are not followed. A folder whose status is `apart` is left out, with all that
    is in it.

    Raises:
        CorpusError: if a folder cannot be read.
    """
    found: list[Path] = []
    places = [folder]
    while places:  # os.walk calls itself for each folder, and Python ends that at a depth of 1000
        place = places.pop()
        for entry in entries_of(place, apart):
            if entry.name.startswith("."):
                continue
            if not is_folder(entry):
                found.append(Path(entry.path))
            elif not entry.is_symlink():
                places.append(Path(entry.path))
    return sorted(path.relative_to(folder).parts for path in found)


def entries_of(place: Path, apart: os.stat_result | None) -> "list[os.DirEntry[str]]":
    """What a folder holds, but for a folder whose status is `apart`.

    Raises:
        CorpusError: if it cannot be read.
    """
    try:
        with os.scandir(place) as entries:
            return [entry for entry in entries if not _is_at(entry, apart)]
    except OSError as error:
        raise CorpusError(f"{place} could not be read: {error.strerror}") from error


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link to nothing or to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


@dataclass(frozen=True)
class Chosen:
    """What of the files of a folder is read, and what is not."""

    read: list[Parts]
    others: list[Parts]  # that are not read, but for those of exports
    exports: list[Parts]  # whose token streams are read
    left_out: list[Parts]  # exports that lie among other files


def chosen(names: Iterable[Parts], given: str | None) -> Chosen:
    """Those files of a folder that are read, in the same order.

    With a format given all are. Else those are whose suffix is known; of safetensors files only
    those called tokens*, and of an export only its token stream. An export that lies in the folder,
    among other files that are read, was rather made of them, and is left out.
    """
    names = list(names)
    exports = _exports(names) if given in (None, "safetensors") else frozenset[Parts]()
    owners = {parts: _owner(parts, exports) for parts in names}
    read = [parts for parts in names if _is_chosen(parts, owners[parts], given)]
    left_out = frozenset[Parts]()
    if any(owners[parts] is None for parts in read):
        left_out = exports - {()}
        read = [parts for parts in read if owners[parts] not in left_out]
    taken = set(read)
    return Chosen(
        read=read,
        others=[parts for parts in names if owners[parts] is None and parts not in taken],
        exports=sorted(exports - left_out),
        left_out=sorted(left_out),
    )


def _owner(parts: Parts, exports: frozenset[Parts]) -> Parts | None:
    """The outermost export that holds a file; None where there is none."""
    above = (parts[:depth] for depth in range(len(parts)))
    return next((folder for folder in above if folder in exports), None)


def _is_chosen(parts: Parts, owner: Parts | None, given: str | None) -> bool:
    kind = kind_of(parts[-1], given)
    if kind is None or kind.refused:
        return False
    streams = kind.format == "safetensors" and parts[-1].startswith(TOKENS)
    if owner is not None:
        return streams and parts[len(owner) : -1] == (TOKENS,)
    return streams or kind.format != "safetensors" or given is not None


def _exports(names: list[Parts]) -> frozenset[Parts]:
    """The folders that are exports: they hold tokens and a manifest, or will once finished."""
    manifests = {parts[:-1] for parts in names if parts[-1] == MANIFEST}
    tokens = [parts for parts in names if parts[-2:-1] == (TOKENS,)]
    return frozenset(
        parts[:-2] for parts in tokens if parts[:-2] in manifests or PART.fullmatch(parts[-1])
    )


def _is_at(entry: "os.DirEntry[str]", place: os.stat_result | None) -> bool:
    if place is None or not is_folder(entry):
        return False
    return os.path.samestat(entry.stat(), place)
