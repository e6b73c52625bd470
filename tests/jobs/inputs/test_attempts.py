import os
import signal
import time
from collections.abc import Iterator

import pytest
import tenacity

from exporters.filesystems import reason
from jobs.errors import CorpusError
from jobs.inputs import attempts
from jobs.inputs.attempts import WAIT, not_read
from jobs.stopping import SIGNALS, StoppedError, stoppable

URL = "https://me:secret@host/a.txt?signature=x"


class AnswerError(Exception):
    def __init__(self, status: int) -> None:
        self.status = status
        self.message = "Sorry"


def failing(errors: list[Exception]) -> tuple[int, list[str]]:
    """How often a call is made that fails with errors, one after the other, and what is said."""
    made, said = 0, list[str]()

    def call() -> None:
        nonlocal made
        made += 1
        if errors:
            raise errors.pop(0)

    attempts.attempts(URL, said.append)(call)
    return made, said


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAIT", tenacity.wait_none())


def test_what_fails_is_tried_again_and_said() -> None:
    assert failing([OSError(104, "Connection reset"), AnswerError(503)]) == (
        3,
        [
            "reading https://host/a.txt failed (Connection reset): trying again, 2 of 5",
            "reading https://host/a.txt failed (503 Sorry): trying again, 3 of 5",
        ],
    )


def test_the_fifth_error_is_the_last() -> None:
    errors: list[Exception] = [TimeoutError(f"number {n}") for n in range(9)]
    with pytest.raises(TimeoutError, match="number 4"):
        failing(errors)
    assert len(errors) == 4


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (FileNotFoundError("x"), False),
        (PermissionError(13, "Permission denied"), False),
        (CorpusError("x"), False),
        (AnswerError(403), False),
        (AnswerError(429), True),
        (ConnectionResetError(104, "Reset"), True),
        (ValueError("odd"), True),
    ],
    ids=str,
)
def test_what_would_only_fail_again_is_not_tried_again(error: Exception, waits: bool) -> None:
    errors = [error]
    if waits:
        assert failing(errors)[0] == 2
    else:
        with pytest.raises(type(error)):
            failing(errors)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(URL), "it is not there"),
        (AnswerError(404), "it is not there"),
        (AnswerError(500), "500 Sorry"),
        (OSError(5, "Input/output error", URL), "Input/output error"),
        (ValueError("two\nlines"), "two"),
        (ValueError(), "ValueError"),
        (None, "no reason was given"),
    ],
    ids=str,
)
def test_reasons_are_one_line(error: Exception | None, expected: str) -> None:
    assert expected == reason(error)


def test_the_last_error_says_how_many_attempts_were_made() -> None:
    assert str(not_read(URL, OSError(5, "Input/output error"), 5)) == (
        "https://host/a.txt could not be read: Input/output error, 5 times"
    )
    assert (
        str(not_read(URL, AnswerError(403), 5)) == "https://host/a.txt could not be read: 403 Sorry"
    )


@pytest.mark.parametrize(("number", "least"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (9, 8)])
def test_waits_grow_up_to_a_bound_and_differ(number: int, least: float) -> None:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = number
    waits = [WAIT(state) for _ in range(20)]
    assert least <= min(waits) < max(waits) <= least + 0.5


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the handlers of signals back, which a job that was asked to stop leaves."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_a_call_and_is_not_tried_again() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    with pytest.raises(StoppedError), stoppable():
        attempts.attempts(URL, lambda note: None)(call)
    assert len(calls) == 1
