"""A place in a bucket, or whatever store a URL names: objects, put whole and read by ranges.

Nothing relies on renames, locks or folders. What exists is always asked for, never remembered.
"""

import io
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from exporters.errors import ExportError
from exporters.filesystems import VERSIONS, filesystem, is_url, is_web, local_path, reason, shown
from kernels.errors import QkvmillError

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20  # of a multipart upload
MOST_PARTS = 10_000  # that a store takes
READ_BYTES = 8 << 20  # asked for at once where an object is read from its beginning
LOOK_BYTES = 1 << 16  # asked for at once where little of an object is read
REQUESTS = 8  # at once

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, and what changes with them; None where its store tells nothing."""

    bytes: int
    version: str | None


@dataclass(frozen=True)
class Bucket:
    """An object of a store, or all objects whose names begin with its URL and a slash.

    What another machine refuses is an ExportError with the URL and the reason.
    """

    url: str  # without a slash at its end

    def __str__(self) -> str:
        return shown(self.url)

    def __truediv__(self, name: str) -> "Bucket":
        return Bucket(f"{self.url}/{name}")

    def check_writable(self) -> None:
        """Raise ExportError if a store of its kind takes no objects."""
        if is_web(self.url):
            raise ExportError(f"--out {self} is on a web server, which is only read from")

    def list(self) -> dict[str, Stored]:
        """The objects below it, by what follows its URL and the slash."""
        with _told(self, "listed"):
            system, path = self._opened()
            above = path.rstrip("/") + "/"
            return {
                name.removeprefix(above): _stored(info)
                for name, info in system.find(path, detail=True).items()
                if name.startswith(above) and info["type"] == "file" and not name.endswith("/")
            }

    def look(self) -> Stored | None:
        """What its store tells of the object; None where there is none."""
        with _told(self, "read"):
            system, path = self._opened()
            try:
                return _stored(system.info(path))
            except FileNotFoundError:
                return None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the object, which has as many."""
        if stop <= start:
            return b""
        with _told(self, "read"):
            system, path = self._opened()
            data: bytes = system.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:
            raise ExportError(f"{self} could not be read: it is cut short")
        return data

    def read_all(self) -> bytes | None:
        """The bytes of a small object; None where there is none."""
        with _told(self, "read"):
            system, path = self._opened()
            try:
                data: bytes = system.cat_file(path)
            except FileNotFoundError:
                return None
        return data

    def open(self, buffer: int = LOOK_BYTES) -> BinaryIO:
        """The object as a file to read, which asks for so many bytes at once.

        Raises:
            FileNotFoundError: if there is none.
        """
        stored = self.look()
        if stored is None:
            raise FileNotFoundError(2, "No such object", str(self))
        return io.BufferedReader(_Ranges(self, stored.bytes), buffer)

    def put(self, data: bytes) -> None:
        """Write a small object."""
        with _told(self, "written"):
            system, path = self._opened()
            if not getattr(system, "async_impl", False):  # no store of objects: it has folders
                system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.pipe_file(path, data)

    def upload(self, file: Path) -> None:
        """Write a file as the object, which appears whole or not at all where stores do so."""
        with _told(self, "written"):
            system, path = self._opened()
            options = {}
            if "s3" in system.protocol:  # whose parts are 50 MB else, ten of them in memory
                parts = math.ceil(file.stat().st_size / MOST_PARTS)
                options["chunksize"] = max(PART_BYTES, parts)
            began = time.monotonic()
            system.put_file(str(file), path, **options)
        log.info("uploaded %s in %.2f s", self, time.monotonic() - began)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects below it, which need not be there."""
        wanted = list(names)
        each(self._remove_one, wanted)
        if wanted and (left := self.list().keys() & set(wanted)):
            raise ExportError(f"{self / min(left)} could not be removed: it is still there")

    def _remove_one(self, name: str) -> None:
        with _told(self / name, "removed"):
            system, path = (self / name)._opened()
            try:
                system.rm_file(path)
            except FileNotFoundError:
                return

    def _opened(self) -> tuple[Any, str]:
        """The filesystem, with nothing remembered, and the path there."""
        system, path = filesystem(self.url)
        system.invalidate_cache()
        return system, path


Place = Path | Bucket
"""Where an export or a file of it is: `/` and `str` are of both."""


class _Ranges(io.RawIOBase):
    """An object as a file; each read is a request."""

    def __init__(self, bucket: Bucket, size: int) -> None:
        self._bucket = bucket
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + place
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        data = self._bucket.read(self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def place_of(location: str | Place) -> Place:
    """The place that a path or a URL names; URLs of this machine's filesystem are paths.

    Raises:
        ExportError: if nothing that is installed speaks a URL's protocol, or it names nothing.
    """
    if not isinstance(location, str):
        return location
    if not is_url(location):
        return Path(location)
    path = local_path(location)
    if path is not None:
        return Path(path)
    url = location.rstrip("/")
    if not is_url(url):
        raise ExportError(f"{location} names no bucket; give one, such as s3://bucket/prefix")
    return Bucket(url)


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function gives for each item, with several requests under way at once."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="request") as pool:
        return list(pool.map(function, items))


def _stored(info: dict[str, Any]) -> Stored:
    told = [(name, info[name]) for name in VERSIONS if info.get(name)]
    version = None
    for name, value in told[:1]:
        value = value.timestamp() if isinstance(value, datetime) else value
        version = f"{name} {value}"
    return Stored(int(info["size"]), version)


@contextmanager
def _told(place: Bucket, what: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into an ExportError that says what could not be done."""
    try:
        yield
    except QkvmillError:
        raise
    except Exception as error:  # filesystems raise whatever the library below them does
        why = reason(error)
        if isinstance(error, FileNotFoundError) and what != "read":
            why = "there is no such bucket, or it may not be seen"
        going_on = ""
        if what == "written":
            going_on = (
                "; what is finished is kept, so put that right and give the same command again"
            )
        raise ExportError(f"{place} could not be {what}: {why}{going_on}") from error
