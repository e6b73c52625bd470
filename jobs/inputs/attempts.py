"""Calls of other machines: made again where that may help, and their errors in words."""

from collections.abc import Callable
from typing import TypeVar

import tenacity

from exporters.filesystems import reason, true_error
from jobs.errors import CorpusError
from jobs.inputs.locations import shown
from jobs.stopping import waiting
from kernels.errors import QkvmillError

ATTEMPTS = 5
WAIT = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 0.5)  # seconds

LASTING = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError,
    ImportError, MemoryError, QkvmillError,
)  # fmt: skip
"""Errors that another attempt only comes to again."""

T = TypeVar("T")


def attempts(url: str, note: Callable[[str], None]) -> Callable[[Callable[[], T]], T]:
    """What calls a function until it does not fail, ATTEMPTS times at most.

    A signal that asks the job to stop ends a call, or the time between two, with StoppedError.
    """

    def say(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        note(
            f"reading {shown(url)} failed ({reason(error)}): trying again, "
            f"{state.attempt_number + 1} of {ATTEMPTS}"
        )

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=WAIT,
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=say,
        reraise=True,
    )

    def call(function: Callable[[], T]) -> T:
        with waiting():
            return retrying(function)

    return call


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may do better."""
    error = true_error(error)
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 425, 429)
    return isinstance(error, Exception) and not isinstance(error, LASTING)


def not_read(url: str, error: Exception, made: int = 1) -> QkvmillError:
    """The error of a file after so many attempts, in one line; ours are what they are."""
    if isinstance(error, QkvmillError):
        return error
    tried = f", {made} times" if made > 1 and _may_pass(error) else ""
    return CorpusError(f"{shown(url)} could not be read: {reason(error)}{tried}")
