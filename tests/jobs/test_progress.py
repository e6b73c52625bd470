import io

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import Reporter


def test_without_a_terminal_a_stage_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    reporter = Reporter()
    with reporter.stage("windows", 10, "windows") as advance:
        advance(4)
        advance(6)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith("windows: 4 of 10 windows after")
    assert lines[-1].startswith("windows: 10 windows in")
    assert captured.out == ""
    assert "\x1b" not in captured.err
    assert reporter.seconds["windows"] >= 0


def test_lines_are_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().stage("tokenise", 1000, "bytes") as advance:
        for _ in range(1000):
            advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_a_terminal_there_is_a_bar() -> None:
    reporter = Reporter()
    screen = io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=120)
    with reporter.stage("windows", 10, "windows") as advance:
        advance(10)
    assert "10/10" in screen.getvalue()
    assert "100%" in screen.getvalue()


def test_quiet_says_nothing_but_still_times(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.note("a note")
    with reporter.stage("windows", 1, "windows") as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    assert "windows" in reporter.seconds


def test_brackets_in_a_note_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().note("/tmp/[red]/x [/]")
    assert capsys.readouterr().err == "/tmp/[red]/x [/]\n"
