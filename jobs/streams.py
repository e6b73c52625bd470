"""Standard output and standard error: what they do not take ends no job without saying so.

Progress and errors that standard error does not take are dropped: nobody reads them. What standard
output does not take is an OutputError, which says so by name.
"""

import errno
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from jobs.errors import OutputError


class _Output(FileIO):
    """Raises OutputError for the first write that fails, and takes no more."""

    failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            written: int | None = super().write(data)
            if written is None:  # it is set not to block
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            self.failed = True
            raise OutputError(error) from error
        return written


class _Progress(FileIO):
    """Drops what cannot be written."""

    def write(self, data: Any) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def mend_streams() -> None:
    """Take closed streams as /dev/null, and show what a stream cannot encode as escapes.

    Python's own streams, which a test may have replaced, are told apart as this module says.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout = _over(_Output(sys.stdout.fileno(), "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, TextIOWrapper):
        sys.stderr = _over(_Progress(sys.stderr.fileno(), "w", closefd=False), sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _over(raw: FileIO, stream: TextIOWrapper) -> TextIOWrapper:
    """A stream as another, that writes to raw."""
    stream.flush()
    return TextIOWrapper(
        BufferedWriter(raw),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
