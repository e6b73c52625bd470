"""Files that URLs name, through fsspec: found, and read block by block with new attempts."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from exporters import filesystems
from exporters.errors import ExportError
from exporters.filesystems import VERSIONS, filesystem, is_web
from jobs.errors import CorpusError
from jobs.inputs.attempts import ATTEMPTS, attempts, not_read
from jobs.inputs.globs import MAGIC
from jobs.inputs.locations import shown
from jobs.inputs.places import open_places
from jobs.stopping import waiting
from kernels.errors import QkvmillError

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file as its filesystem tells of it; `parts` of its path, below what was asked for."""

    location: str
    parts: tuple[str, ...]
    bytes: int | None
    version: str


@dataclass(frozen=True)
class Listing:
    """The files that a URL names, in order; `one`: it is that of a file itself."""

    files: tuple[RemoteFile, ...]
    one: bool


def local_path(url: str) -> str | None:
    """As local_path of exporters/filesystems.py, of a corpus.

    Raises:
        CorpusError: if nothing that is installed speaks its protocol.
    """
    try:
        return filesystems.local_path(url)
    except ExportError as error:
        raise CorpusError(str(error)) from error


def find_remote(url: str) -> Listing:
    """The files that a URL names: itself, those below it, or those that match it as a pattern.

    Hidden names (".name") below it are none. An http URL is that of a folder if it ends in "/",
    and only "*" makes it a pattern, which matches files alone; other patterns match folders too.

    Raises:
        CorpusError: if it cannot be read or listed.
    """
    with waiting():
        return _found(url)


def _found(url: str) -> Listing:
    system, path = _filesystem(url)
    web = is_web(url)
    magic = "*" in path if web else not MAGIC.isdisjoint(path)
    try:
        try:
            info = system.info(path)
        except FileNotFoundError:
            if not magic:
                raise
            infos = system.glob(path, detail=True)
            if not web:
                infos |= _below(system, infos)
            return _listed(system, path, infos)
        if path.endswith("/") if web else info["type"] == "directory":
            return _listed(system, path, system.find(path, detail=True))
        name = PurePosixPath(shown(url)).name
        return Listing((_remote_file(system, info, path, url, (name,)),), True)
    except Exception as error:  # filesystems raise whatever the library below them does
        raise not_read(url, error) from error


def read_remote(
    url: str, size: int | None, version: str, note: Callable[[str], None]
) -> Generator[bytes, None, None]:
    """The bytes of a file as it was found, in blocks of at most READ_BYTES.

    What fails is tried again, from where it was, and said through `note`.

    Raises:
        CorpusError: if it cannot be read, or is not as it was found.
    """
    system, path = _filesystem(url)
    again = attempts(url, note)
    stream: Any = None
    place = 0

    def next_block() -> bytes:
        nonlocal stream
        try:
            if stream is None:
                _check_unchanged(system, path, url, size, version)
                stream = _open_at(system, path, place, size)
            block: bytes = stream.read(READ_BYTES)
            if not block and size is not None and place < size:
                raise OSError(f"it ended after {place} of {size} bytes")
        except BaseException:
            _close(stream)
            stream = None
            raise
        return block

    try:
        while block := again(next_block):
            place += len(block)
            if size is not None and place > size:
                raise changed(url, size)
            yield block
        again(lambda: _check_unchanged(system, path, url, size, version))
    except QkvmillError:
        raise
    except Exception as error:
        raise not_read(url, error, ATTEMPTS) from error
    finally:
        _close(stream)


@contextlib.contextmanager
def open_remote(
    url: str, size: int, version: str, note: Callable[[str], None]
) -> Iterator[BinaryIO]:
    """A file as it was found, to be read at any place; attempts are made as by read_remote.

    Of a server that only answers with whole files, what lies before a place is read too.

    Raises:
        CorpusError: here or by a read, if it cannot be read, or is not as it was found.
    """
    system, path = _filesystem(url)
    again = attempts(url, note)
    stream: Any = None

    def open_at(place: int) -> tuple[Any, bool]:
        nonlocal stream
        if "http" in system.protocol:
            _close(stream)
            stream = _open_http(system, path, place, size)
            return stream, place > 0 and stream.r.status != 206
        if stream is None or stream.closed:
            stream = system.open(path, "rb", cache_type="none")
        stream.seek(place)
        return stream, False

    try:
        try:
            again(lambda: _check_unchanged(system, path, url, size, version))
        except Exception as error:
            raise not_read(url, error) from error
        with open_places(open_at, size, again, lambda error: not_read(url, error)) as places:
            yield places
    finally:
        _close(stream)


def changed(location: str, size: int | None) -> CorpusError:
    """The error of a file that is not as it was when it was found with so many bytes."""
    found = "" if size is None else f" with {size} bytes"
    return CorpusError(
        f"{shown(location)} changed since it was found{found}; run again when nobody writes to it"
    )


def _filesystem(url: str) -> tuple[Any, str]:
    """As filesystem of exporters/filesystems.py, of a corpus."""
    try:
        return filesystem(url)
    except ExportError as error:
        raise CorpusError(str(error)) from error


def _below(system: Any, infos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What lies in the folders of a listing; of one in another, the outer one is listed."""
    found: dict[str, dict[str, Any]] = {}
    outer = ""
    folders = (name.rstrip("/") for name, info in infos.items() if info["type"] == "directory")
    for folder in sorted(folders, key=lambda name: name.split("/")):
        if not outer or not folder.startswith(f"{outer}/"):
            outer = folder
            found |= system.find(folder, detail=True)
    return found


def _listed(system: Any, path: str, infos: dict[str, dict[str, Any]]) -> Listing:
    """The files of a listing, sorted by their parts below the fixed part of a path."""
    root = path
    while not MAGIC.isdisjoint(root):
        root = root.rpartition("/")[0]
    root = root.rstrip("/") + "/"
    files = []
    for name, info in infos.items():
        parts = PurePosixPath(name.removeprefix(root)).parts
        hidden = any(part.startswith(".") for part in parts)
        if info["type"] == "file" and not name.endswith("/") and not hidden:
            files.append(_remote_file(system, info, name, system.unstrip_protocol(name), parts))
    return Listing(tuple(sorted(files, key=lambda file: file.parts)), False)


def _remote_file(
    system: Any, info: dict[str, Any], path: str, url: str, parts: tuple[str, ...]
) -> RemoteFile:
    if info.get("size") is None:  # a listing may leave it out
        info = system.info(path)
    return RemoteFile(url, parts, info.get("size"), _version(info))


def _version(info: dict[str, Any]) -> str:
    """What changes with a file's bytes, as far as its filesystem tells."""
    told = [f"{name} {info[name]}" for name in VERSIONS if info.get(name) is not None]
    return ", ".join([*told[:1], f"size {info.get('size')}"])


def _check_unchanged(system: Any, path: str, url: str, size: int | None, version: str) -> None:
    """Raise CorpusError unless a file is the one that was found."""
    system.invalidate_cache(path)
    if _version(system.info(path)) != version:
        raise changed(url, size)


def _open_at(system: Any, path: str, place: int, size: int | None) -> Any:
    """A stream of a file's bytes from `place` on."""
    if "http" in system.protocol:
        return _open_http(system, path, place, size)
    stream = system.open(path, "rb")
    stream.seek(place)
    return stream


def _open_http(system: Any, path: str, place: int, size: int | None) -> Any:
    """One answer of a server from `place` on; one that only answers with a whole file is heeded."""
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={place}-"}
    if not place:
        del headers["Range"]
    stream = system.open(path, "rb", block_size=0, size=size, headers=headers)
    passed = place if stream.r.status == 206 else 0
    while passed < place:
        block = stream.read(min(READ_BYTES, place - passed))
        if not block:
            raise OSError(f"it ended after {passed} bytes")
        passed += len(block)
    return stream


def _close(stream: Any) -> None:
    if stream is not None:
        with contextlib.suppress(Exception):  # it was only read
            stream.close()
