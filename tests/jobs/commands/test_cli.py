"""What a user can do wrong: exact status, one line that names the culprit, nothing finished."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from exporters import disk
from exporters.layerfile import save_layer
from jobs.commands.cli import cli
from jobs.config import JobConfig
from tests.helpers import NOTEBOOK, ROOT, SMALL, qkvmill, random_layer, succeed, write_corpus

TEXT = "Enough text for a window of sixteen tokens, and then some more of it to be sure. " * 3


def corpus(t: Path) -> Path:
    return write_corpus(t / "corpus", a=TEXT) / "a.txt"


def file_with(t: Path, data: bytes, name: str = "bad.txt") -> Path:
    path = t / name
    path.write_bytes(data)
    return path


def folder(t: Path) -> Path:
    (t / "f").mkdir()
    return t / "f"


def pickled(t: Path) -> Path:
    torch.save({}, t / "w.pt")
    return t / "w.pt"


def weights(t: Path, **changes: Any) -> Path:
    layer = random_layer(vocabulary_size=100277, positions=False)
    tensors = {name: tensor.clone() for name, tensor in layer.named_tensors().items()}
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change
    save_file(tensors, t / "w.safetensors", metadata={"qkvmill": '{"heads": 4}'})
    return t / "w.safetensors"


def small_vocabulary(t: Path) -> Path:
    save_layer(t, "w.safetensors", random_layer(vocabulary_size=50))
    return t / "w.safetensors"


Arguments = Callable[[Path], list[Any]]
BAD: list[tuple[str, Arguments, int, str]] = [
    ("missing-path", lambda t: [t / "none.txt"], 1, "none.txt could not be read: No such file"),
    ("empty-file", lambda t: [file_with(t, b"")], 1, "bad.txt is empty"),
    ("only-a-bom", lambda t: [file_with(t, b"\xef\xbb\xbf")], 1, "bad.txt is empty"),
    ("empty-folder", lambda t: [folder(t)], 1, "f holds no file of a kind that is read"),
    ("binary", lambda t: [file_with(t, b"ELF\0\1")], 1, "bad.txt is binary, not text: byte 3"),
    ("bad-utf8", lambda t: [file_with(t, b"caf\xe9 x")], 1, "bad.txt is not UTF-8: byte 3 is 0xe9"),
    ("not-read", lambda t: [file_with(t, b"{}", "a.rst")], 1, "a.rst is not of a kind that is"),
    ("too-short", lambda t: [file_with(t, b"few words")], 1, "need 17"),
    ("empty-path", lambda t: [""], 2, "the path is empty"),
    ("no-corpus", lambda t: [], 2, "CORPUS"),
    ("tokenizer", lambda t: [corpus(t), "--tokenizer", "cl100k"], 2, "mean cl100k_base?"),
    ("heads", lambda t: [corpus(t), "--d-model", 30, "--heads", 4], 2, "--d-model 30"),
    ("kv-heads", lambda t: [corpus(t), "--kv-heads", 5], 2, "--kv-heads 5"),
    ("zero-length", lambda t: [corpus(t), "--context-length", 0], 2, "--context-length 0"),
    ("zero-stride", lambda t: [corpus(t), "--stride", 0], 2, "--stride 0"),
    ("zero-batch", lambda t: [corpus(t), "--batch-size", 0], 2, "--batch-size 0"),
    ("negative-seed", lambda t: [corpus(t), "--seed", -1], 2, "--seed -1"),
    ("huge-seed", lambda t: [corpus(t), "--seed", 2**63], 2, "--seed"),
    ("not-a-number", lambda t: [corpus(t), "--context-length", "many"], 2, "'many'"),
    ("option", lambda t: [corpus(t), "--d-modle", 64], 2, "--d-modle"),
    ("choice", lambda t: [corpus(t), "--dtype", "float8"], 2, "float8"),
    ("export", lambda t: [corpus(t), "--export", "attention"], 2, "attention"),
    ("size", lambda t: [corpus(t), "--shard-size", "lots"], 2, "'lots' is not a size"),
    ("size-zero", lambda t: [corpus(t), "--shard-size", "0MB"], 2, "--shard-size 0"),
    ("size-infinite", lambda t: [corpus(t), "--shard-size", "1e999"], 2, "is not a size"),
    ("vocab-word", lambda t: [corpus(t), "--vocab-size", "all"], 2, "--vocab-size all"),
    ("vocab-zero", lambda t: [corpus(t), "--vocab-size", 0], 2, "--vocab-size 0"),
    ("vocab-small", lambda t: [corpus(t), "--vocab-size", 99], 2, "99 rows"),
    (
        "stride-random",
        lambda t: [corpus(t), "--sampling", "random", "--stride", 4],
        2,
        "--stride has no effect",
    ),
    (
        "tf32-dtype",
        lambda t: [corpus(t), "--tf32", "--method", "direct", "--dtype", "float16"],
        2,
        "--tf32 has no effect with --dtype float16",
    ),
    (
        "tf32-cpu",
        lambda t: [corpus(t), "--tf32", "--method", "direct", "--device", "cpu"],
        1,
        "--tf32 needs a CUDA",
    ),
    (
        "tf32-features",
        lambda t: [corpus(t), "--tf32", "--export", "features"],
        2,
        "--tf32 has no effect without --export qkv",
    ),
    (
        "narrow-compact",
        lambda t: [
            corpus(t), "--context-length", 4, "--d-model", 4, "--heads", 1, "--artifact", "compact"
        ],
        1,
        "--artifact compact cannot be had: tables are as exact",
    ),
    ("tf32-auto", lambda t: [corpus(t), "--tf32"], 2, "--tf32 needs --method direct"),
    (
        "compact-direct",
        lambda t: [corpus(t), "--artifact", "compact", "--method", "direct"],
        2,
        "--artifact compact is made of tables; leave --method direct out",
    ),
    (
        "compact-tokens",
        lambda t: [corpus(t), "--artifact", "compact", "--export", "tokens"],
        2,
        "give --export qkv",
    ),
    (
        "compact-features-without-weights",
        lambda t: [
            corpus(t), "--artifact", "compact", "--no-save-weights", "--export", "qkv",
            "--export", "features",
        ],
        2,
        "expands x and y from the weights",
    ),
    (
        "method-tokens",
        lambda t: [corpus(t), "--export", "tokens", "--method", "tables"],
        2,
        "--method tables has no effect without --export qkv",
    ),
    (
        "weights-tokens",
        lambda t: [corpus(t), "--export", "tokens", "--no-save-weights"],
        2,
        "--no-save-weights has no effect",
    ),
    (
        "narrow-tables",
        lambda t: [
            corpus(t), "--context-length", 4, "--d-model", 4, "--heads", 1, "--method", "tables"
        ],
        1,
        "tables are as exact as direct from d-model 8 on",
    ),
    ("device", lambda t: [corpus(t), "--device", "tpu"], 2, "'tpu' is not auto, cpu, cuda"),
    (
        "no-effect",
        lambda t: [corpus(t), "--export", "tokens", "--seed", 1, "--heads", 2],
        2,
        "--heads has no effect",
    ),
    (
        "weights-missing",
        lambda t: [corpus(t), "--weights", t / "no.safetensors"],
        1,
        "no.safetensors is not there; nothing is downloaded",
    ),
    (
        "weights-shape",
        lambda t: [corpus(t), "--weights", weights(t, k_proj__weight=torch.ones(3, 64))],
        1,
        "k_proj.weight has shape [3, 64]",
    ),
    (
        "weights-nan",
        lambda t: [corpus(t), "--weights", weights(t, v_proj__weight=torch.ones(64, 64).log() / 0)],
        1,
        "v_proj.weight holds NaN",
    ),
    (
        "weights-lacking",
        lambda t: [corpus(t), "--weights", weights(t, k_proj__weight=None)],
        1,
        "lacks the tensor k_proj.weight",
    ),
    (
        "weights-pickle",
        lambda t: [corpus(t), "--weights", pickled(t)],
        1,
        "w.pt is a pickle",
    ),
    (
        "weights-text",
        lambda t: [corpus(t), "--weights", file_with(t, b"hello world")],
        1,
        "bad.txt is not a safetensors file",
    ),
    (
        "weights-overflow",
        lambda t: [
            corpus(t), "--weights", weights(t, q_proj__weight=torch.full((64, 64), 1e6)),
            "--dtype", "float16",
        ],
        1,
        "q_proj.weight has values beyond float16's",
    ),
    (
        "weights-and-d-model",
        lambda t: [corpus(t), "--weights", weights(t), "--d-model", 128],
        1,
        "--d-model 128 does not fit",
    ),
    (
        "weights-and-vocabulary",
        lambda t: [corpus(t), "--weights", weights(t), "--vocab-size", 5],
        2,
        "--vocab-size has no effect with --weights",
    ),
    (
        "token-beyond-v",
        lambda t: [corpus(t), "--weights", small_vocabulary(t)],
        1,
        "the embedding has 50 rows, but the corpus holds token",
    ),
    (
        "config-missing",
        lambda t: [corpus(t), "--config", t / "no.toml"],
        2,
        "no.toml could not be read: No such file",
    ),
    (
        "config-syntax",
        lambda t: [corpus(t), "--config", file_with(t, b"a = ", "j.toml")],
        2,
        "j.toml could not be read",
    ),
    (
        "config-option",
        lambda t: [corpus(t), "--config", file_with(t, b"d-modle = 5", "j.toml")],
        2,
        "'d-modle' is not an option of",
    ),
    (
        "config-list",
        lambda t: [corpus(t), "--config", file_with(t, b"export = 'qkv'", "j.toml")],
        2,
        "'export' takes a list",
    ),
    (
        "config-text-for-number",
        lambda t: [corpus(t), "--config", file_with(t, b"heads = 'four'", "j.toml")],
        2,
        "'heads' takes a whole number, not 'four'",
    ),
    (
        "config-fraction",
        lambda t: [corpus(t), "--config", file_with(t, b"context-length = 8.9", "j.toml")],
        2,
        "'context-length' takes a whole number, not 8.9",
    ),
    (
        "config-boolean",
        lambda t: [corpus(t), "--config", file_with(t, b"heads = true", "j.toml")],
        2,
        "'heads' takes a whole number, not True",
    ),
    (
        "config-number-for-text",
        lambda t: [corpus(t), "--config", file_with(t, b"tokenizer = 100", "j.toml")],
        2,
        "'tokenizer' takes a string, not 100",
    ),
    (
        "config-number-for-flag",
        lambda t: [corpus(t), "--config", file_with(t, b"overwrite = 1", "j.toml")],
        2,
        "'overwrite' takes true or false, not 1",
    ),
    (
        "config-list-of-numbers",
        lambda t: [corpus(t), "--config", file_with(t, b"export = [1]", "j.toml")],
        2,
        "'export' takes a string, not 1",
    ),
    (
        "config-table",
        lambda t: [corpus(t), "--config", file_with(t, b"[heads]\na = 1", "j.toml")],
        2,
        "'heads' takes a whole number, not {'a': 1}",
    ),
]  # fmt: skip
if not torch.cuda.is_available():
    BAD.append(("no-gpu", lambda t: [corpus(t), "--device", "cuda"], 1, "sees no CUDA device"))


def assert_one_line(stderr: str, culprit: str) -> None:
    *_, last = stderr.splitlines()
    assert last.startswith("Error: ")
    assert culprit in last
    assert "Traceback" not in stderr
    assert sum("Error" in line for line in stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "culprit"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_mistake_is_one_line_and_leaves_nothing_that_looks_finished(
    tmp_path: Path, command: str, arguments: Arguments, status: int, culprit: str
) -> None:
    out = tmp_path / "out"
    given = arguments(tmp_path)
    length = [] if "--context-length" in given else ["--context-length", 16]
    result = qkvmill(command, *given, *length, "--out", out)
    assert status == result.status, result.stderr
    assert_one_line(result.stderr, culprit)
    assert result.stdout == ""
    assert not (out / "manifest.json").exists()
    assert not out.exists()


def test_less_free_disk_than_needed_is_said_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    many = ("--sampling", "random", "--batches", 10**12)
    result = qkvmill("run", corpus(tmp_path), "--out", out, *SMALL, *many)
    assert result.status == 1
    assert_one_line(result.stderr, f"--out {out} needs")
    assert "its disk has" in result.stderr
    assert not out.exists()


def test_less_free_disk_than_the_tokens_turn_out_to_need_is_said_before_the_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=60 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folder = write_corpus(tmp_path / "corpus", a=TEXT * 200)
    out = tmp_path / "out"
    result = qkvmill("run", folder, "--out", out, *SMALL, "--stride", 1, "--vocab-size", "corpus")
    assert result.status == 1
    assert_one_line(result.stderr, "its disk has 62.9 MB free")
    assert not (out / "shards").exists()
    assert not (out / "manifest.json").exists()


def test_out_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"]):
        result = qkvmill("run", corpus(tmp_path), "--out", tmp_path / "out", *SMALL, *more)
        assert result.status == 1
        assert_one_line(result.stderr, "holds something else (thesis.tex)")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_out_that_is_a_file_or_below_one_is_named(tmp_path: Path) -> None:
    path = file_with(tmp_path, b"", "out")
    for out in (path, path / "deeper"):
        result = qkvmill("run", corpus(tmp_path), "--out", out, *SMALL)
        assert result.status == 1
        assert_one_line(result.stderr, str(path))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc")
def test_an_unwritable_out_is_named() -> None:
    result = qkvmill("run", NOTEBOOK, "--out", "/proc/out", *SMALL)
    assert result.status == 1
    assert_one_line(result.stderr, "--out /proc")


def test_a_damaged_vocabulary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.tokenizer.VOCABULARIES", tmp_path)
    file_with(tmp_path, b"rubbish", "cl100k_base.tiktoken.gz")
    result = qkvmill("run", NOTEBOOK, "--out", tmp_path / "out", *SMALL)
    assert result.status == 1
    assert_one_line(result.stderr, f"{tmp_path}/cl100k_base.tiktoken.gz is damaged")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_without_an_export_is_named(tmp_path: Path, command: str) -> None:
    for place in (tmp_path / "none", tmp_path):
        result = qkvmill(command, place)
        assert result.status == 1
        assert_one_line(result.stderr, str(place))


def test_a_write_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "sync", full)
    result = qkvmill("run", corpus(tmp_path), "--out", tmp_path / "out", *SMALL)
    assert result.status == 1
    assert_one_line(result.stderr, ".work/journal could not be written: No space left")


def test_of_two_jobs_on_one_out_one_is_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", a=TEXT * 20_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "run", str(folder), "--out", str(out)]
    command += [str(option) for option in SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 60
        while not (out / ".work/lock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        other = write_corpus(tmp_path / "other", a=TEXT)
        second = qkvmill("run", other, "--out", out, *SMALL, "--overwrite")
        assert second.status == 1
        assert_one_line(second.stderr, f"--out {out} is being written by process {first.pid} on")
        assert first.wait(timeout=120) == 0
    succeed("verify", out)


def test_of_two_jobs_that_start_at_once_one_does_it(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", a=TEXT * 20_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "run", str(folder), "--out", str(out)]
    command += [str(option) for option in SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    ends = sorted((job.communicate(timeout=120)[1], job.returncode) for job in both)
    assert sorted(status for _, status in ends) == [0, 1]
    said = next(stderr for stderr, status in ends if status == 1)
    assert_one_line(said, f"--out {out} is being written by process ")
    succeed("verify", out)


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "run", str(NOTEBOOK), "--out", str(tmp_path / "out")]
    command += ["--context-length", "16", "--vocab-size", "5000000", "--d-model", "768"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    assert done.returncode == 1
    assert_one_line(done.stderr, "memory ran out")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_job_which_says_so_and_goes_on(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    folder = write_corpus(tmp_path / "corpus", a=TEXT * 20_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "run", str(folder), "--out", str(out)]
    command += [str(option) for option in SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 60
        while not (out / ".work").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        job.send_signal(signum)
        _, stderr = job.communicate(timeout=60)
    assert job.returncode == status
    assert_one_line(stderr, f"stopped by {signum.name}; the same command goes on from here")
    assert not (out / "manifest.json").exists()
    succeed(*command[3:])
    succeed("verify", out)


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {shlex.quote(sys.executable)} -m jobs --version"
    done = subprocess.run(
        command, shell=True, cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: the working folder is gone; change to one that is there\n"


def test_an_interrupt_while_it_starts_is_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "run", str(corpus(tmp_path)), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for seconds in (0.3, 0.9):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
            time.sleep(seconds)
            job.send_signal(signal.SIGINT)
            _, stderr = job.communicate(timeout=60)
        assert job.returncode in (130, -signal.SIGINT)
        assert "Traceback" not in stderr


def test_a_config_file_gives_defaults_and_flags_win(tmp_path: Path) -> None:
    text = f"""
    corpus = [{str(corpus(tmp_path))!r}]
    context-length = 8
    d-model = 32
    heads = 2
    export = ["features", "qkv"]
    shard-size = "1MB"
    """
    config = file_with(tmp_path, text.encode(), "job.toml")
    out = tmp_path / "out"
    succeed("run", "--config", config, "--out", out, "--heads", 4)
    job = succeed("inspect", out, "--json").json["job"]
    assert (
        job["context_length"], job["d_model"], job["heads"], job["export"], job["shard_size"]
    ) == (8, 32, 4, ["features", "qkv"], 10**6)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("512MB", 512 * 10**6), ("1.5 GiB", 3 * 2**29), ("2kb", 2000), ("7b", 7)],
)
def test_sizes_take_units(tmp_path: Path, text: str, expected: int) -> None:
    out = tmp_path / "out"
    given = [corpus(tmp_path), "--out", out, "--context-length", 16, "--export", "tokens"]
    succeed("run", *given, "--shard-size", text)
    assert succeed("inspect", out, "--json").json["job"]["shard_size"] == expected


def test_quiet_says_nothing(tmp_path: Path) -> None:
    result = succeed("run", corpus(tmp_path), "--out", tmp_path / "out", *SMALL, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    result = succeed("verify", tmp_path / "out", "--quiet")
    assert (result.stdout, result.stderr) == ("", "")


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    result = succeed("run", corpus(tmp_path), "--out", tmp_path / "out", *SMALL, "--json")
    assert result.json["windows"] > 0
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(arguments: list[str]) -> None:
    result = qkvmill(*arguments)
    for command in ("run", "plan", "inspect", "verify", "bench"):
        assert re.search(rf"^  {command}\b", result.stdout, re.MULTILINE)


def test_every_field_of_a_job_has_an_option() -> None:
    options = {parameter.name for parameter in cli.commands["run"].params}
    fields = set(JobConfig.__dataclass_fields__)
    assert fields == options - {"config", "quiet", "as_json", "verbose"}


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r"qkvmill \d+\.\d+\.\d+\n", succeed("--version").stdout)


def test_the_runner_of_click_works_too(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    given = ["run", str(NOTEBOOK), "--out", out, *[str(option) for option in SMALL]]
    assert CliRunner().invoke(cli, given).exit_code == 0


def shell(line: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable, **variables}
    return subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, check=False
    )


RUN = '"$PY" -m jobs run a.txt --out out --context-length 16 --d-model 32 --heads 4'


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "| head -c 1"])
def test_closed_streams_stop_no_job(tmp_path: Path, closing: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    done = shell(f"{RUN} {closing}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    succeed("verify", tmp_path / "out")


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


@FULL
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&1 >/dev/null | true"])
def test_progress_that_cannot_be_written_stops_no_job(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    done = shell(f"{{ {RUN}; echo $? >status; }} {where}", tmp_path)
    assert done.stderr == b""
    assert (tmp_path / "status").read_text() == "0\n"
    succeed("verify", tmp_path / "out", "--quiet")


@FULL
@pytest.mark.parametrize(
    ("where", "reason"), [("| true", "Broken pipe"), (">/dev/full", "No space left on device")]
)
def test_a_summary_that_cannot_be_written_is_an_error_of_a_finished_export(
    tmp_path: Path, where: str, reason: str
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    # The reader is gone before there is anything to read.
    done = shell(f"{{ {RUN}; echo $? >status; }} {where}", tmp_path)
    assert_one_line(
        done.stderr.decode(),
        f"standard output could not be written: {reason}; the export at out is finished",
    )
    assert (tmp_path / "status").read_text() == "1\n"
    succeed("verify", tmp_path / "out", "--quiet")


@FULL
def test_readers_that_are_gone_end_what_only_shows_quietly_as_a_pipe_ends_other_tools(
    export: Path, tmp_path: Path
) -> None:
    jobs = '"$PY" -m jobs'
    # The first command of a pipe writes only once the second is gone.
    line = "; ".join(
        f"{{ sleep 0.1; {jobs} {command}; echo $? >>status; }} | true"
        for command in (f"inspect {export}", "--help")
    )
    done = shell(line, tmp_path)
    assert done.stderr == b""
    assert (tmp_path / "status").read_text() == "141\n141\n"
    full = shell(f"{jobs} inspect {export} --json >/dev/full", tmp_path)
    assert full.returncode == 1
    assert full.stderr == (
        b"Error: standard output could not be written: No space left on device\n"
    )


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(NOTEBOOK.read_bytes())
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = shell(f'{RUN} --quiet && "$PY" -m jobs inspect out --window 0', tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"\\u5c0f" in done.stdout
    done = shell('"$PY" -m jobs inspect out --window 0 --json', tmp_path, **ascii_only)
    assert json.loads(done.stdout)["input_text"].startswith("小沈阳")


def test_names_that_are_not_utf8_are_shown_as_escapes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/c\xff"
    os.mkdir(folder)
    for name in (b"/a\xfe.txt", b"/new\nline.txt"):
        Path(os.fsdecode(folder + name)).write_text(TEXT)
    given = ("run", os.fsdecode(folder), "--context-length", 16, "--export", "tokens", "--out")
    succeed(*given, tmp_path / "out")
    files = succeed("inspect", tmp_path / "out", "--json").json["corpus"]["files"]
    assert [file["name"] for file in files] == ["a\\xfe.txt", "new\nline.txt"]
    result = qkvmill(*given, os.fsdecode(b"out\xfd"))
    assert result.status == 2
    assert_one_line(result.stderr, "is not UTF-8")


def test_foreign_packages_of_our_names_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "kernels"
    place.mkdir()
    (place / "__init__.py").write_text("")
    for name in ("jobs", "exporters"):
        shutil.copytree(ROOT / name, tmp_path / "site" / name)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'site'}"}
    command = [sys.executable, "-P", "-m", "jobs", "--version"]
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert_one_line(done.stderr, f"the package 'kernels' at {place} hides qkvmill's own")


@pytest.mark.parametrize("files", [5, 6])
def test_too_few_open_files_are_one_line_or_enough(tmp_path: Path, files: int) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    done = shell(f"ulimit -n {files}; {RUN} --quiet", tmp_path)
    if done.returncode:
        assert_one_line(done.stderr.decode(), "oo many open files")
        succeed("run", tmp_path / "a.txt", "--out", tmp_path / "out", *SMALL)
    succeed("verify", tmp_path / "out")


def test_a_thread_that_the_system_does_not_give_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("hash"):
            raise RuntimeError("can't start new thread")
        real(thread)

    command = ("run", corpus(tmp_path), "--out", tmp_path / "out", *SMALL, "--quiet")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        done = qkvmill(*command)
    assert done.status == 1
    assert_one_line(done.stderr, "the system gives no more threads")
    succeed(*command)
