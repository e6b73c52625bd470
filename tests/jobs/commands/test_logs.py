"""--verbose through the command line."""

import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from jobs.commands.cli import cli
from jobs.commands.logs import reporting
from tests.helpers import ROOT, SMALL, qkvmill, succeed, write_corpus

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
TEXT = "One fish, two fish, red fish, blue fish. " * 40


def corpus(folder: Path) -> Path:
    return write_corpus(folder / "corpus", a=TEXT, b=TEXT)


def messages(stderr: str) -> list[str]:
    """The lines without their times, each of which has one."""
    for line in stderr.splitlines():
        assert re.match(STAMP, line), line
    return [re.sub(STAMP, "", line) for line in stderr.splitlines()]


def test_a_run_says_what_it_does_and_why(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("run", corpus(tmp_path), "--out", out, *SMALL, "--method", "tables")
    lines = messages(succeed(*given, "--shard-size", "40KB", "--verbose").stderr)
    for part in (
        "jobs.progress: computing on cpu with torch-cpu: the CPU was asked for",
        "jobs.progress: method tables: it was asked for",
        f"jobs.cutting: reading {tmp_path}/corpus/b.txt as text, from segment 0 on",
        f"jobs.tokenise: {tmp_path}/corpus/a.txt: segment 1 has ",
        "exporters.journal: journal: begun",
        "exporters.journal: journal: the note tokens",
        "jobs.progress: windows begins",
    ):
        assert any(line.startswith(part) for line in lines), part
    wrote = [line for line in lines if line.startswith("jobs.compute: wrote shards/shard-")]
    assert len(wrote) == len(list((out / "shards").iterdir())) > 1
    assert all(re.search(r": \d+ bytes in \d+\.\d\d s$", line) for line in wrote)


def test_a_run_that_goes_on_says_what_it_keeps_and_makes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = ("run", corpus(tmp_path), "--out", out, *SMALL, "--shard-size", "40KB")
    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.commit", lambda *_: (_ for _ in ()).throw(OSError(5, "no")))
        assert qkvmill(*given).status == 1
    first = next((out / "shards").glob("shard-00001-*"))
    first.write_bytes(b"\0" * first.stat().st_size)
    lines = messages(succeed(*given, "-v").stderr)
    kept = [line for line in lines if re.match(r"jobs.resume: kept \S+: \d+ bytes", line)]
    assert any("shard-00002" in line for line in kept)
    assert f"jobs.progress: {first} is not as it was written: it is made again" in lines
    assert any(line.startswith(f"jobs.compute: wrote shards/{first.name}") for line in lines)


def test_processes_that_tokenize_are_named(tmp_path: Path) -> None:
    given = (corpus(tmp_path), "--out", tmp_path / "out", "--workers", 2, "--export", "tokens")
    lines = messages(succeed("run", *given, "--context-length", 16, "-v").stderr)
    started = [line for line in lines if re.match(r"jobs.pool: started process \d+,", line)]
    assert len(started) == 2
    assert sum(" ended with " in line and "jobs.pool: process" in line for line in lines) == 2


def test_uploads_are_named(tmp_path: Path) -> None:
    given = (corpus(tmp_path), "--out", "memory://logged/first", "--export", "tokens")
    try:
        lines = messages(succeed("run", *given, "--context-length", 16, "-v").stderr)
    finally:
        fsspec.filesystem("memory").store.clear()
    uploaded = r"exporters.bucket: uploaded memory://logged/first/tokens/\S+ in \d+\.\d\d s"
    assert any(re.fullmatch(uploaded, line) for line in lines)
    assert any(line.startswith("exporters.bucketjournal: journal: tokens/") for line in lines)


def test_with_json_the_log_is_all_of_stderr(export: Path) -> None:
    result = succeed("verify", export, "--json", "-v")
    assert result.json["problems"] == []
    lines = messages(result.stderr)
    assert sum("bytes match their hash" in line for line in lines) > 3


def test_plan_and_expand_take_it_too(tmp_path: Path, compact: Path) -> None:
    planned = succeed("plan", corpus(tmp_path), "--out", tmp_path / "out", *SMALL, "-v")
    assert any("reading " in line for line in messages(planned.stderr))
    expanded = succeed("expand", compact, "--out", tmp_path / "full", "-v")
    assert any("wrote shards/" in line for line in messages(expanded.stderr))


def test_every_command_that_works_takes_it() -> None:
    takes = {
        name for name, command in cli.commands.items()
        if any(parameter.name == "verbose" for parameter in command.params)
    }  # fmt: skip
    assert {"run", "plan", "verify", "expand", "bench"} <= takes


def test_quiet_and_verbose_exclude_each_other(tmp_path: Path) -> None:
    result = qkvmill("plan", corpus(tmp_path), "--out", tmp_path / "out", "-v", "--quiet")
    assert result.status == 2
    assert result.stderr == "Error: --quiet and --verbose exclude each other; leave one out\n"


def test_without_it_nothing_is_logged_before_or_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = ("run", corpus(tmp_path), *SMALL, "--out")
    succeed(*given, tmp_path / "first", "-v")
    caplog.clear()
    result = succeed(*given, tmp_path / "second")
    assert not caplog.records
    assert not re.search(STAMP, result.stderr)


def test_other_libraries_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(quiet=False, as_json=False, verbose=True):
        logging.getLogger("fsspec").info("of somebody else")
        logging.getLogger("jobs.run").info("ours")
    shown = capsys.readouterr().err
    assert "ours" in shown
    assert "of somebody else" not in shown


def test_hostile_names_are_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(quiet=False, as_json=False, verbose=True):
        logging.getLogger("jobs.run").info("reading %s", "a\x1b[2J\nb [bold]c[/bold] [/]")
    (line,) = messages(capsys.readouterr().err)
    assert line == "jobs.run: reading a\\x1b[2J\\nb [bold]c[/bold] [/]"


def test_lines_stand_whole_above_the_bars_of_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jobs", "run", str(corpus(tmp_path)), "-v"]
    command += ["--out", str(tmp_path / "out"), *map(str, SMALL), "--shard-size", "40KB"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "300"}
    with subprocess.Popen(
        command, env=environment, stderr=theirs, stdout=subprocess.DEVNULL
    ) as job:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += block
    os.close(ours)
    assert job.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    logged = [line for line in re.split(r"[\r\n]+", text) if " jobs." in line]
    assert len(logged) > 10
    for line in logged:
        assert re.fullmatch(rf"{STAMP}jobs\.\w+: .*", line.rstrip()), repr(line)
