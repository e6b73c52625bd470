import io
import re
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from jobs import progress
from jobs.pace import Stage
from jobs.progress import Reporter
from jobs.stopping import StoppedError


def until(condition: Callable[[], object]) -> None:
    """Wait for what other threads do, but not for ever."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def terminal(width: int = 120) -> tuple[Reporter, io.StringIO]:
    reporter, screen = Reporter(), io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=width, highlight=False)
    return reporter, screen


def test_without_a_terminal_lines_come_even_where_nothing_advances(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    said: list[str] = []

    def lines() -> int:
        said.extend(capsys.readouterr().err.splitlines())
        return len(said)

    with Reporter().stage("windows", 10, "windows") as stage:
        stage(4)
        until(lambda: lines() >= 3)
    assert set(said) == {"windows: 4 of 10 windows (40%)"}
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("windows: 4 windows in 0.")
    assert "\x1b" not in "".join(said)


def test_lines_are_half_a_minute_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress.LINE_SECONDS == 30
    with Reporter().stage("tokenise", 1000, "bytes") as stage:
        for _ in range(1000):
            stage(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("on_terminal", [False, True], ids=["lines", "bar"])
def test_the_timer_ends_with_its_stage(on_terminal: bool) -> None:
    reporter = terminal()[0] if on_terminal else Reporter()
    with reporter.stage("windows", 10, "windows"):
        assert len(timers()) == 1
    assert timers() == []


@pytest.mark.parametrize("on_terminal", [False, True], ids=["lines", "bar"])
def test_a_job_that_is_to_stop_passes_through_its_stage(on_terminal: bool) -> None:
    came: list[int] = []

    def check() -> None:
        if came:
            raise StoppedError(came[0])

    reporter = terminal()[0] if on_terminal else Reporter()
    reporter.check = check

    def work() -> None:
        with reporter.stage("windows", 10, "windows") as stage:
            stage(4)
            came.append(2)
            stage(4)

    with pytest.raises(StoppedError):
        work()
    assert timers() == []
    assert "windows" in reporter.seconds
    with pytest.raises(StoppedError), reporter.stage("next", 1, "windows"):
        pass


def test_lines_that_cannot_be_made_stop_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    tried: list[int] = []

    def text(stage: Stage) -> str:
        tried.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(Stage, "text", text)
    with Reporter().stage("windows", 10, "windows") as stage:
        until(lambda: len(tried) > 2)
        stage(10)


@pytest.mark.parametrize("width", [120, 60])
def test_on_a_terminal_there_is_a_bar_with_the_same_text(width: int) -> None:
    reporter, screen = terminal(width)
    with reporter.stage("windows", 10, "windows") as stage:
        stage(4)
        until(lambda: "4 of 10 windows (40%)" in screen.getvalue())
        stage.extra("2 of 3 shards")
    assert "━" in screen.getvalue()
    last = screen.getvalue().splitlines()[-1]  # in one line, whatever the width, after the bar
    assert re.search(r"windows: 4 windows in 0\.\d s, 2 of 3 shards", last)
    assert "━" not in last


def test_a_bar_of_what_has_no_known_end_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FRAME_SECONDS", 0.01)
    reporter, screen = terminal()
    with reporter.stage("tokenise", None, "bytes") as stage:
        stage(5000)
        until(lambda: "5.0 kB read" in screen.getvalue())


def test_quiet_says_nothing_but_still_times(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.note("a note")
    with reporter.stage("windows", 1, "windows") as stage:
        assert timers() == []
        stage(1)
    assert capsys.readouterr().err == ""
    assert "windows" in reporter.seconds


def test_brackets_in_a_note_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().note("/tmp/[red]/x [/]")
    assert capsys.readouterr().err == "/tmp/[red]/x [/]\n"


def test_stages_of_one_name_are_one_and_parts_belong_to_theirs() -> None:
    reporter = Reporter(quiet=True)
    for _ in range(2):
        with reporter.stage("check", 10, "bytes") as stage:
            stage.skip(4)
            stage(6)
    with reporter.stage("windows", 2, "windows") as stage:
        stage.add(tokens=32, bytes=128)
        reporter.add("compute", 0.25)
        reporter.add("compute", 0.5)
    assert list(reporter.seconds) == ["check", "windows", "compute"]
    assert reporter.seconds["compute"] == 0.75
    rows = {(row.name, row.within): row for row in reporter.timings()}
    assert list(rows) == [
        ("start-up", None), ("check", None), ("windows", None), ("compute", "windows"),
        ("idle", "windows"), ("other", None),
    ]  # fmt: skip
    check, windows = rows["check", None], rows["windows", None]
    assert check.tokens_per_second is None
    assert check.bytes_per_second == pytest.approx(12 / reporter.seconds["check"], rel=0.01)
    assert windows.tokens_per_second is not None
    assert windows.bytes_per_second == pytest.approx(4 * windows.tokens_per_second, rel=0.01)
    with pytest.raises(ValueError, match="compute is a part of no stage"):
        reporter.add("compute", 1.0)


def test_time_counts_from_when_the_program_began() -> None:
    reporter = Reporter(quiet=True, began=time.monotonic() - 100)
    with reporter.stage("layer", 1, "layer"):
        pass
    start_up, *_ = reporter.timings()
    assert start_up.name == "start-up"
    assert start_up.seconds == pytest.approx(100, abs=5)
    assert start_up.share > 0.9


def test_a_job_that_is_to_stop_makes_no_more_attempts() -> None:
    def stop() -> None:
        raise StoppedError(2)

    with pytest.raises(StoppedError):
        Reporter(quiet=True, check=stop).note_or_stop("trying again")
