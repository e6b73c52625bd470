"""A pattern of paths -> what matches it: *, ? and [..] within a name, ** for any folders."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from jobs.inputs.folders import entries_of, is_folder

MAGIC = frozenset("*?[")


def is_pattern(text: str) -> bool:
    return not MAGIC.isdisjoint(text)


def fixed_part(pattern: Path) -> Path:
    """The folder that a pattern's matches lie in, whatever they are."""
    parts = pattern.parts
    length = next(i for i, part in enumerate(parts) if is_pattern(part))
    return Path(*parts[:length])


def matches(pattern: Path, apart: os.stat_result | None) -> list[Path]:
    """The files and folders that match, sorted by their parts.

    Hidden names (".name") match only a part that begins with a dot. `**` follows no links to
    folders, and ends in files where it is the last part. A folder whose status is `apart` is left
    out.

    Raises:
        CorpusError: if a folder that may hold matches cannot be read.
    """
    root = fixed_part(pattern)
    wanted = pattern.parts[len(root.parts) :]
    found: set[Path] = set()
    seen: set[tuple[Path, int]] = set()  # two ** reach the same folder in many ways
    places = [(root, 0)] if os.path.isdir(root) else []
    while places:
        place, depth = places.pop()
        if (place, depth) in seen:
            continue
        seen.add((place, depth))
        part, last = wanted[depth], depth == len(wanted) - 1
        if part == "**" and not last:
            places.append((place, depth + 1))
        elif not is_pattern(part):
            path = place / part
            if last and os.path.lexists(path):
                found.add(path)
            elif not last and os.path.isdir(path):
                places.append((path, depth + 1))
            continue
        for entry in entries_of(place, apart):
            path = place / entry.name
            if part == "**":
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    if not entry.is_symlink():
                        places.append((path, depth))
                elif last:
                    found.add(path)
            elif _fits(entry.name, part):
                if last:
                    found.add(path)
                elif is_folder(entry):
                    places.append((path, depth + 1))
    return sorted(found, key=lambda path: path.parts)


def _fits(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
