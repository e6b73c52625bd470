"""The window stage: shards of several threads, by pieces and whole."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporters import shards, source
from exporters.contents import window_tensors
from exporters.errors import ExportError
from exporters.layerfile import save_layer
from exporters.tokens import TokenStream
from exporters.windows import Windows, cut_windows
from jobs import shards as jobshards
from jobs.compute import buffer_bytes
from jobs.outputs import allocate
from tests.helpers import ROOT, SMALL, needs_c, qkvmill, random_layer, succeed, write_corpus


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    """A job of several shards with a norm and all tensors."""
    corpus = write_corpus(tmp_path / "corpus", a="Pack my box with five dozen liquor jugs. " * 60)
    layer = random_layer(d=48, heads=6, kv_heads=2, head_dim=8, norm="layernorm",
                         vocabulary_size=100300)  # fmt: skip
    save_layer(tmp_path, "w.safetensors", layer)
    return (
        "run", corpus, "--weights", tmp_path / "w.safetensors", "--context-length", 16,
        "--device", "cpu", "--shard-size", "40kB", "--batch-size", 1, "--export", "tokens",
        "--export", "features", "--export", "qkv",
    )  # fmt: skip


@needs_c
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_a_c_compiler_the_bytes_are_the_same_and_it_is_said(
    tmp_path: Path, command: tuple[object, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (*command, "--method", "tables", "--dtype", dtype)
    said = succeed(*job, "--out", tmp_path / "by-c").stderr
    assert "by torch" not in said
    monkeypatch.setenv("CC", "no-such-compiler")
    said = succeed(*job, "--out", tmp_path / "by-torch").stderr
    note = "q, k and v are combined by torch, the same but slower than by C: CC names "
    note += "'no-such-compiler', which is no program"
    assert f"{note}\n" in said
    assert note in json.loads((tmp_path / "by-torch" / "run.json").read_text())["notes"]
    one, other = ((tmp_path / name / "SHA256SUMS").read_text() for name in ("by-c", "by-torch"))
    assert one == other


@pytest.mark.parametrize("options", [("--method", "direct"), ("--artifact", "compact")], ids=str)
def test_where_nothing_is_combined_no_compiler_is_missed(
    tmp_path: Path, command: tuple[object, ...], options: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "by torch" not in succeed(*command, *options, "--out", tmp_path / "out").stderr


def test_bytes_of_direct_do_not_hang_on_threads_where_windows_are_short(
    tmp_path: Path,
) -> None:
    # A product of fewer than 16 rows is rounded otherwise by MKL: where a step ends may not move.
    corpus = write_corpus(tmp_path / "corpus", a="Pack my box with five dozen liquor jugs. " * 1900)
    job = ("run", corpus, "--context-length", 7, "--d-model", 768, "--heads", 12, "--method",
           "direct", "--device", "cpu", "--vocab-size", "corpus",
           "--no-save-weights")  # fmt: skip
    before = torch.get_num_threads()
    sums = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            succeed(*job, "--out", tmp_path / f"{threads}")
            sums.add((tmp_path / f"{threads}" / "SHA256SUMS").read_text())
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1


@pytest.mark.parametrize("method", ["tables", "direct"])
def test_bytes_do_not_hang_on_threads_or_pieces(
    tmp_path: Path, command: tuple[object, ...], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    sums = set()
    try:
        for threads, piece in ((1, 1), (2, 8 << 20), (3, 2000)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(jobshards, "PIECE_BYTES", piece)
            out = tmp_path / f"{threads}"
            summary = succeed(*command, "--out", out, "--method", method, "--json").json
            assert summary["shards"] > 3
            assert summary["method"] == method
            sums.add((out / "SHA256SUMS").read_text())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1


@pytest.mark.parametrize("method", ["tables", "direct"])
@pytest.mark.parametrize("threads", [1, 2])
def test_shards_that_cannot_be_written_stop_the_job(
    tmp_path: Path,
    command: tuple[object, ...],
    threads: int,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    written = shards.write_pieces

    def fail(root: Path, name: str, *rest: object, **options: object) -> object:
        if name.startswith("shards") and int(name.split("-")[1]) >= 3:
            raise ExportError(f"{root / name} could not be written: No space left on device")
        return written(root, name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_pieces", fail)
    monkeypatch.setattr(jobshards, "write_pieces", fail)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = qkvmill(*command, "--out", out, "--method", method, "--quiet")
    finally:
        torch.set_num_threads(before)
    assert result.status == 1
    assert "shards/shard-0000" in result.stderr
    assert "No space left on device" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("method", ["tables", "direct"])
@pytest.mark.parametrize("threads", [1, 2])
def test_files_that_may_not_grow_end_the_job_in_one_line(
    tmp_path: Path, threads: int, method: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="Pack my box with five dozen liquor jugs. " * 2000)
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "jobs", "run", corpus, "--out", out, *SMALL, "--method", method,
        "--no-save-weights", "--vocab-size", "corpus", "--shard-size", "400kB", "--quiet",
    ]  # fmt: skip

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))

    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=limit, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "shards/shard-0000" in done.stderr
    assert "could not be written: File too large; what is finished is kept" in done.stderr
    assert not (out / "manifest.json").exists()
    assert "going on" in succeed(*command[3:-1]).stderr
    succeed("verify", out)


@pytest.mark.parametrize("largest", [1, 2, 7])
def test_a_gpu_out_of_memory_computes_fewer_windows_at_once_to_the_same_bytes(
    tmp_path: Path, command: tuple[object, ...], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (*command, "--method", "direct")
    succeed(*job, "--out", tmp_path / "undisturbed", "--shard-size", "400kB")
    real = source.fill

    def fill(windows: source.WindowSource, first: int, stop: int, out: dict[str, Tensor]) -> None:
        if stop - first > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(windows, first, stop, out)

    monkeypatch.setattr(jobshards, "fill", fill)
    result = succeed(*job, "--out", tmp_path / "out", "--shard-size", "400kB")
    said = "the GPU's memory ran out: computing fewer windows at once"
    assert result.stderr.count(said) == 1
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("out", "undisturbed")]
    assert sums[0] == sums[1]


def test_a_gpu_without_memory_for_one_window_is_an_error(
    tmp_path: Path, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(jobshards, "fill", fill)
    result = qkvmill(*command, "--method", "direct", "--out", tmp_path / "out")
    assert result.status == 1
    last = "Error: the GPU's memory ran out on one window; give a smaller --context-length"
    assert result.stderr.splitlines()[-1].startswith(last)


def test_places_of_windows_are_written_without_reading_their_tokens(
    tmp_path: Path, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    cut = cut_windows

    def counted(stream: TokenStream, starts: torch.Tensor, length: int, **options: Any) -> Windows:
        nonlocal most
        most = max(most, length * len(starts))
        return cut(stream, starts, length, **options)

    monkeypatch.setattr(source, "cut_windows", counted)
    monkeypatch.setattr(jobshards, "PIECE_TOKENS", 160)
    corpus = write_corpus(
        tmp_path / "more", a="Amazingly few discotheques provide jukeboxes. " * 99
    )
    options = ("--context-length", 16, "--export", "tokens")
    succeed("run", corpus, "--out", tmp_path / "out", *options)
    assert 0 < most <= 160


def test_the_buffers_are_counted() -> None:
    plans = window_tensors(
        ["qkv"], context_length=2048, layout="bhtd", dtype="float32", heads=16, kv_heads=4,
        head_dim=128,
    )  # fmt: skip
    whole = sum(t.nbytes for t in allocate(plans, 3, pinned=False).values())
    assert buffer_bytes(plans, 1, whole, pieces=False) == whole
    assert buffer_bytes(plans, 9, whole, pieces=False) == 2 * whole
    q = 4 * 16 * 2048 * 128  # larger than a piece, so a piece is one window of it
    threads = torch.get_num_threads()
    assert buffer_bytes(plans, 100, whole, pieces=True) == threads * 4 * q
    assert buffer_bytes(plans, 1, whole, pieces=True) == 4 * q
