"""A folder -> the files in it that are read."""

import os
from collections.abc import Iterable
from pathlib import Path

from jobs.errors import CorpusError
from jobs.inputs.kinds import kind_of

Parts = tuple[str, ...]  # of a path, relative to the folder

MANIFEST = "manifest.json"  # exporters.manifest imports torch, which workers do without
TOKENS = "tokens"
"""The folder of an export, and the start of the names, that hold a token stream."""


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


def chosen(names: Iterable[Parts], given: str | None) -> list[Parts]:
    """Those files of a folder that are read, in the same order.

    With a format given all are. Else those are whose suffix is known; of safetensors files only
    those called tokens*, and of an export only its token stream.
    """
    names = list(names)
    exports = _exports(names) if given in (None, "safetensors") else frozenset[Parts]()
    return [parts for parts in names if _is_chosen(parts, exports, given)]


def _is_chosen(parts: Parts, exports: frozenset[Parts], given: str | None) -> bool:
    kind = kind_of(parts[-1], given)
    if kind is None or kind.refused:
        return False
    streams = kind.format == "safetensors" and parts[-1].startswith(TOKENS)
    for depth in range(len(parts)):
        if parts[:depth] in exports:
            return streams and parts[depth:-1] == (TOKENS,)
    return streams or kind.format != "safetensors" or given is not None


def _exports(names: list[Parts]) -> frozenset[Parts]:
    """The folders that are exports: they hold a manifest and a folder of tokens."""
    manifests = {parts[:-1] for parts in names if parts[-1] == MANIFEST}
    tokens = {parts[:-2] for parts in names if parts[-2:-1] == (TOKENS,)}
    return frozenset(manifests & tokens)


def _is_at(entry: "os.DirEntry[str]", place: os.stat_result | None) -> bool:
    if place is None or not is_folder(entry):
        return False
    return os.path.samestat(entry.stat(), place)
