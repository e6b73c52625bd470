import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from jobs.stopping import SIGNALS, StoppedError, stoppable, waiting
from tests.helpers import ROOT, run_python


@pytest.fixture
def ignored() -> Iterator[signal.Signals]:
    """A signal that is ignored, as nohup and shells do it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield signal.SIGINT
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_handlers_are_put_back_unless_a_signal_asked_to_stop(
    signum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signum)
    with stoppable() as check:
        check()
    assert signal.getsignal(signum) is before
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    others = {other: signal.getsignal(other) for other in SIGNALS}
    try:
        with stoppable() as check:
            os.kill(os.getpid(), signum)
            with pytest.raises(StoppedError) as stopped:
                check()
        assert stopped.value.status == 128 + signum
        assert ended == []
        os.kill(os.getpid(), signum)
        assert ended == [128 + signum]
    finally:
        for other, handler in others.items():
            signal.signal(other, handler)


def test_a_signal_that_is_ignored_stays_ignored(ignored: signal.Signals) -> None:
    with stoppable() as check:
        os.kill(os.getpid(), ignored)
        check()
        assert signal.getsignal(ignored) is signal.SIG_IGN
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_the_program_leaves_interrupts_ignored_where_they_are() -> None:
    code = (
        "import os, signal, sys, types\n"
        "end = lambda began: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules['jobs.commands.main'] = types.SimpleNamespace(main=end)\n"
        "from jobs.__main__ import main\n"
        "main()"
    )
    for handler, ends_well in ((signal.SIG_IGN, True), (signal.SIG_DFL, False)):
        before = signal.signal(signal.SIGINT, handler)
        done = subprocess.run(run_python(code), cwd=ROOT, capture_output=True, check=False)
        signal.signal(signal.SIGINT, before)
        assert (done.returncode == 0) == ends_well, done.stderr


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param("return 3", 3, id="as-the-interpreter-ends"),
        pytest.param("interrupt()", 130, id="where-nothing-takes-it"),
    ],
)
def test_interrupts_while_the_program_ends_are_no_traceback(command: str, status: int) -> None:
    code = (
        "import atexit, os, signal, sys, types\n"
        "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        f"def main(began):\n    {command}\n"
        "sys.modules['jobs.commands.main'] = types.SimpleNamespace(main=main)\n"
        "atexit.register(interrupt)\n"
        "from jobs.__main__ import main\n"
        "main()"
    )
    done = subprocess.run(run_python(code), cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the handlers of signals back, which a job that was asked to stop leaves."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("before", [True, False], ids=["before", "within"])
def test_a_signal_ends_what_waits_at_once(before: bool) -> None:
    began = time.monotonic()
    with pytest.raises(StoppedError), stoppable():
        if before:
            os.kill(os.getpid(), signal.SIGINT)
        with waiting():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("handlers")
def test_after_waiting_a_signal_is_for_the_next_safe_place() -> None:
    with stoppable() as check:
        with waiting():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedError):
            check()


def test_waiting_outside_of_a_job_changes_nothing() -> None:
    with pytest.raises(KeyboardInterrupt), waiting():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
