"""A file of another machine as one that can be read at any place."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

PLACE_BYTES = 1 << 17  # read at once
PASS_BYTES = 1 << 20

OpenAt = Callable[[int], tuple[Any, bool]]


def open_places(
    open_at: OpenAt,
    size: int,
    again: Callable[[Callable[[], Any]], Any],
    failed: Callable[[Exception], Exception],
) -> BinaryIO:
    """A seekable file of `size` bytes.

    Args:
        open_at: gives a stream of the bytes from a place on, and whether to go on with it is the
            only way to a later place that does not begin at the file's start.
        again: calls a function, and again if that may help.
        failed: gives what is raised of an error that a read ends with.
    """
    return io.BufferedReader(_Places(open_at, size, again, failed), PLACE_BYTES)


class _Places(io.RawIOBase):
    """The file of open_places, without a buffer."""

    def __init__(
        self,
        open_at: OpenAt,
        size: int,
        again: Callable[[Callable[[], Any]], Any],
        failed: Callable[[Exception], Exception],
    ) -> None:
        self._open_at, self._size, self._again, self._failed = open_at, size, again, failed
        self._stream: Any = None
        self._onward = False  # whether the stream is the way to later places
        self._at = 0  # the stream's place
        self._place = 0  # where the next read is to begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self._size - self._place))
        if not size:
            return 0
        try:
            data: bytes = self._again(partial(self._read_on, size))
        except Exception as error:
            raise self._failed(error) from error
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _read_on(self, size: int) -> bytes:
        """At most `size` bytes from the place on, at least one."""
        try:
            if self._stream is None or not (
                self._at == self._place or (self._onward and self._at < self._place)
            ):
                self._stream, self._onward = self._open_at(self._place)
                self._at = self._place
            while self._at < self._place:
                self._at += len(self._some(min(PASS_BYTES, self._place - self._at)))
            data = self._some(size)
            self._at += len(data)
        except BaseException:
            with contextlib.suppress(Exception):  # it is only read
                self._stream.close()
            self._stream = None
            raise
        return data

    def _some(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if not data:
            raise OSError(f"it ended after {self._at} of {self._size} bytes")
        return data
