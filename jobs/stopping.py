"""SIGINT and SIGTERM: the first asks a job to stop at its next safe place, the second ends it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kernels.errors import QkvmillError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_check: Callable[[], None] | None = None  # of the job that is under way
_waits = False


class StoppedError(QkvmillError):
    """A signal asked the job to stop; `signum` is which."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; the same command goes on from here"
        )

    @property
    def status(self) -> int:
        """The exit status that shells give to a program that a signal ended."""
        return 128 + self.signum


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Yield a function, to be called at safe places, that raises StoppedError after a signal.

    A second signal ends the process at once, also after the block: a process that was asked to stop
    has nothing to do but to end. A signal that is ignored, as nohup and shells do it
    for jobs in the background, stays ignored. Outside the main thread, where Python takes no
    signals, nothing is changed.
    """
    global _check
    came: list[int] = []

    def take(signum: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + signum)
        came.append(signum)
        if _waits:
            check()

    def check() -> None:
        if came:
            raise StoppedError(came[0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    taken = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, take) for signum in taken}
    _check = check
    try:
        yield check
    finally:
        _check = None
        for signum, handler in before.items() if not came else ():
            signal.signal(signum, handler)


@contextmanager
def waiting() -> Iterator[None]:
    """Where the job waits for another machine: it holds nothing, so a signal stops it at once.

    Raises:
        StoppedError: anywhere in the block, if a signal came or comes.
    """
    global _waits
    if _check is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _waits = _waits, True
    try:
        _check()
        yield
    finally:
        _waits = before
