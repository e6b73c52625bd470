"""What the command line names -> the files that are read, in their order."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.errors import ExportError
from exporters.filesystems import is_url
from exporters.safefile import open_regular
from jobs.errors import CorpusError
from jobs.inputs.folders import Chosen, Parts, chosen, files_below
from jobs.inputs.globs import fixed_part, is_pattern, matches
from jobs.inputs.kinds import READ, Kind, kind_of
from jobs.inputs.locations import STDIN, shown
from jobs.inputs.remote import RemoteFile, find_remote, local_path

LIST = "@"
EXPORT_LEFT_OUT = "an export; name it itself to read its tokens"
NAMED = 5  # files and exports that a note names


@dataclass(frozen=True)
class InputFile:
    """A file of a corpus as it was when it was found.

    `name` stands in the manifest and does not say where the corpus lay. `bytes` are those that are
    stored, None where they are not known; `version` is another once the file is.
    """

    location: str
    name: str
    format: str
    compression: str | None
    bytes: int | None
    version: str


@dataclass(frozen=True)
class Corpus:
    """The files in their order, and how many others their folders held."""

    files: tuple[InputFile, ...]
    skipped_files: int
    skipped: tuple[str, ...] = ()  # what these are, an export as a whole
    exports: tuple[str, ...] = ()  # below what was named, whose token streams are read

    @property
    def bytes(self) -> int:
        """Those that are stored, of the files of which they are known."""
        return sum(file.bytes or 0 for file in self.files)


@dataclass(frozen=True)
class _Search:
    """What holds for all that is looked for: a format that was given, a folder that is left out."""

    format: str | None
    apart: os.stat_result | None


def find_files(
    paths: Sequence[str],
    *,
    out: Path | None = None,
    format: str | None = None,  # noqa: A002  # the option's name
    skip_empty: bool = False,
) -> Corpus:
    """The files that paths name, in the order given; what a path names itself is sorted.

    A path is that of a file or a folder, a pattern of them (*, ?, [..], **) where nothing has its
    name, a URL, "-" for standard input, or "@" and a file with a path on each line. Of folders and
    patterns, hidden files and folders (".name") are skipped, other files that are not read are
    skipped and counted, and links to folders are not followed.

    Args:
        out: the folder of the export, which is no part of a corpus whose folder holds it.
        format: how files are read, whatever their names; None: as their names say.
        skip_empty: count files of no bytes with those that are skipped.

    Raises:
        CorpusError: if a path is missing, empty, not of a kind that is read, or names no file.
    """
    apart = out.stat() if out is not None and out.is_dir() else None
    search = _Search(format, apart)
    files: list[InputFile] = []
    skipped: list[str] = []
    exports: list[str] = []
    skipped_files = 0
    for path in _listed(paths):
        found = _find(path, search)
        files += found.files
        skipped_files += found.skipped_files
        skipped += found.skipped
        exports += found.exports
        if path == STDIN and sum(file.location == STDIN for file in files) > 1:
            raise CorpusError("standard input (-) is given twice, and can be read only once")
    empty = [file for file in files if file.bytes == 0]
    if empty and not skip_empty:
        raise CorpusError(
            f"{shown(empty[0].location)} is empty; remove it, leave it out, or give "
            "--bad-records skip"
        )
    if len(empty) == len(files):
        raise CorpusError(f"all files of the corpus, {len(files)}, are empty; give files with text")
    return Corpus(
        files=tuple(file for file in files if file.bytes != 0),
        skipped_files=skipped_files + len(empty),
        skipped=(*skipped, *(f"{shown(file.location)} (empty)" for file in empty)),
        exports=tuple(exports),
    )


def notes(corpus: Corpus) -> list[str]:
    """What somebody should know of the files that were found, a line each."""
    lines = []
    if corpus.exports:
        lines.append(f"reading the token streams of exports: {_first(corpus.exports)}")
    if corpus.skipped_files:
        named = f", such as {_first(corpus.skipped)}" if corpus.skipped else ""
        lines.append(f"files that are not read: {corpus.skipped_files:,}{named}")
    return lines


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]).replace("\n", "\\n") + more


def version_of(status: os.stat_result) -> str:
    """What changes when a file of this machine does."""
    return f"{status.st_size} bytes, mtime {status.st_mtime_ns}, inode {status.st_ino}"


def _listed(paths: Iterable[str]) -> Iterator[str]:
    """Paths, with those that lists hold in the place of the lists."""
    for path in paths:
        if path.startswith(LIST):
            yield from _lines(Path(path.removeprefix(LIST)))
        else:
            yield path


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not blank."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: byte {error.start} of the list") from error
    except ExportError as error:
        raise CorpusError(str(error)) from error
    except OSError as error:
        raise CorpusError(f"the list {path} could not be read: {error.strerror}") from error
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise CorpusError(f"the list {path} names nothing; write a path on each line")
    for number, line in enumerate(lines):
        if line.startswith(LIST) or "\0" in line:
            raise CorpusError(
                f"the list {path} names {line[:80]!r} (path {number + 1}), which is no path; lists "
                "hold no lists, and ./ before a name that begins with @ makes it a path"
            )
    return lines


def _find(path: str, search: _Search) -> Corpus:
    """The files that one path names."""
    if path == STDIN:
        file = InputFile(STDIN, "stdin", search.format or "text", None, None, "")
        return Corpus((file,), 0)
    if is_url(path):
        if (local := local_path(path)) is None:
            return _find_remote(path, search)
        path = local
    if os.path.isdir(path):
        return _find_below(Path(path), search)
    if is_pattern(path) and not os.path.lexists(path):
        return _find_matching(path, search)
    return Corpus((_local_file(Path(path), Path(path).name, search.format),), 0)


def _find_below(folder: Path, search: _Search) -> Corpus:
    names = files_below(folder, search.apart)
    corpus = _chosen(folder, names, search)
    if not corpus.files:
        raise CorpusError(f"{folder} holds no file of a kind that is read ({READ})")
    return corpus


def _find_matching(pattern: str, search: _Search) -> Corpus:
    """The files that match a pattern, and those below the folders that do, each once."""
    root = fixed_part(Path(pattern))
    names: set[Parts] = set()
    for path in matches(Path(pattern), search.apart):
        own = path.relative_to(root).parts
        below = files_below(path, search.apart) if os.path.isdir(path) else [()]
        names.update((*own, *parts) for parts in below)
    corpus = _chosen(root, sorted(names), search)
    if not corpus.files:
        held = f"{len(names)} files, none" if names else "no file"
        raise CorpusError(f"{pattern} matches {held} of a kind that is read ({READ})")
    return corpus


def _chosen(root: Path, names: list[Parts], search: _Search) -> Corpus:
    """Those of some files below a folder that are read."""
    taken = chosen(names, search.format)

    def place(parts: Parts) -> str:
        return shown(str(Path(root, *parts)))

    return Corpus(
        files=tuple(
            _local_file(Path(root, *parts), "/".join(parts), search.format) for parts in taken.read
        ),
        skipped_files=len(names) - len(taken.read),
        skipped=_skipped(taken, place),
        exports=tuple(place(parts) for parts in taken.exports if parts),
    )


def _skipped(taken: Chosen, place: Callable[[Parts], str]) -> tuple[str, ...]:
    """The places of what is not read, an export as a whole."""
    exports = (f"{place(parts)} ({EXPORT_LEFT_OUT})" for parts in taken.left_out)
    return (*exports, *map(place, taken.others))


def _find_remote(url: str, search: _Search) -> Corpus:
    listing = find_remote(url)
    if listing.one:
        return Corpus(tuple(_remote_file(file, search.format) for file in listing.files), 0)
    taken = chosen((file.parts for file in listing.files), search.format)
    read = set(taken.read)
    files = [_remote_file(file, search.format) for file in listing.files if file.parts in read]
    if not files:
        raise CorpusError(f"{shown(url)} holds no file of a kind that is read ({READ})")
    return Corpus(
        files=tuple(files),
        skipped_files=len(listing.files) - len(files),
        skipped=_skipped(taken, "/".join),
        exports=tuple("/".join(parts) for parts in taken.exports if parts),
    )


def _local_file(path: Path, name: str, given: str | None) -> InputFile:
    try:
        status = path.stat()
    except OSError as error:
        raise CorpusError(f"{path} could not be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"{path} is not a regular file; what comes through a pipe is named -")
    kind = _kind(str(path), path.name, given)
    # A name on disk need not be text; what is not UTF-8 in it is shown as \\xNN.
    readable = os.fsencode(name).decode("utf-8", "backslashreplace")
    return InputFile(
        str(path), readable, kind.format, kind.compression, status.st_size, version_of(status)
    )


def _remote_file(file: RemoteFile, given: str | None) -> InputFile:
    kind = _kind(shown(file.location), file.parts[-1], given)
    name = "/".join(file.parts)
    return InputFile(file.location, name, kind.format, kind.compression, file.bytes, file.version)


def _kind(where: str, name: str, given: str | None) -> Kind:
    kind = kind_of(name, given)
    if kind is None:
        raise CorpusError(
            f"{where} is not of a kind that is read ({READ}); give --format to say how to read it"
        )
    if kind.refused:
        raise CorpusError(f"{where} is a compressed safetensors file; decompress it by hand")
    return kind
