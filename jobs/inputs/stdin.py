"""Standard input, which can be read only once."""

import select
import sys
from collections.abc import Callable, Generator
from typing import Any

from jobs.errors import CorpusError
from jobs.inputs.remote import READ_BYTES

CHECK_SECONDS = 0.5

_read: object = None  # the standard input that was read


def gives_nothing() -> bool:
    """Whether standard input is closed, or a terminal."""
    return sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()


def read_stdin(check: Callable[[], None] = lambda: None) -> Generator[bytes, None, None]:
    """The bytes of standard input as they come, in blocks of at most READ_BYTES.

    Args:
        check: called often, also while nothing comes; raises where the job is to stop.

    Raises:
        CorpusError: if it is closed, was read already, or cannot be read.
    """
    global _read
    if sys.stdin is None or sys.stdin.closed:
        raise CorpusError("standard input is closed; pipe text into the command")
    if sys.stdin is _read:
        raise CorpusError("standard input was read already, and can be read only once")
    _read = sys.stdin
    # Below its buffer, which tells nobody whether it holds bytes already.
    stream: Any = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    try:
        while True:
            _wait(stream, check)
            block = stream.read(READ_BYTES)
            if block is None:  # it is set not to block, and another reader was quicker
                continue
            if not block:
                return
            yield block
    except OSError as error:
        raise CorpusError(f"standard input could not be read: {error.strerror}") from error


def _wait(stream: Any, check: Callable[[], None]) -> None:
    """Return once a read would not block; a stream without a descriptor never does."""
    check()
    try:
        descriptor = stream.fileno()
    except OSError:
        return
    while not select.select([descriptor], [], [], CHECK_SECONDS)[0]:
        check()
