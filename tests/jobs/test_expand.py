"""Compact exports through the command line: their size, and what they expand to."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from exporters.errors import ExportError
from exporters.layerfile import save_layer
from exporters.manifest import read_manifest
from exporters.reading import open_export
from jobs import expand
from jobs import shards as jobshards
from jobs.stopping import StoppedError
from kernels.layer import DTYPES, Norm
from tests.helpers import (
    SMALL,
    assert_within_rule,
    qkvmill,
    random_layer,
    small_export,
    succeed,
    write_corpus,
)

VOCABULARY = 100300


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(
        tmp_path / "corpus",
        a="The quick brown fox jumps over the lazy dog. " * 30,
        b="Sphinx of black quartz, judge my vow.\n" * 12,
    )


def contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rope", "none"])
def test_expand_gives_the_bytes_of_a_full_run(
    tmp_path: Path, corpus: Path, positions: str, norm: Norm, dtype: str
) -> None:
    layer = random_layer(
        d=48, heads=6, kv_heads=2, head_dim=8, norm=norm, vocabulary_size=VOCABULARY,
        rotary=6 if positions == "rope" else 0, qk_norm="all" if positions == "rope" else "none",
    )  # fmt: skip
    save_layer(tmp_path, "w.safetensors", layer)
    options = (
        "--weights", tmp_path / "w.safetensors", "--positions", positions, "--dtype", dtype,
        "--context-length", 16, "--device", "cpu", "--shard-size", "50kB", "--method", "tables",
        "--export", "tokens", "--export", "qkv", "--export", "features",
    )  # fmt: skip
    full, compact, expanded = (tmp_path / name for name in ("full", "compact", "expanded"))
    succeed("run", corpus, "--out", full, *options)
    succeed("run", corpus, "--out", compact, *options, "--artifact", "compact")
    succeed("expand", compact, "--out", expanded, "--device", "cpu")
    assert contents(full) == contents(expanded)
    assert len(read_manifest(full).of_kind("windows")) > 1
    for out in (full, compact, expanded):
        succeed("verify", out)
    windows = next(open_export(expanded).batches(10**6))
    found = [windows[name] for name in "qkv"]
    if positions in ("learned", "rope"):
        assert_within_rule(found, layer.to(DTYPES[dtype]), windows["input_ids"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--sampling", "random", "--batches", 3, "--seed", 4), id="random"),
        pytest.param(("--stride", 3), id="overlapping"),
        pytest.param(("--layout", "bthd", "--export", "qkv"), id="bthd-qkv-only"),
        pytest.param(("--no-save-weights",), id="no-weights"),
        pytest.param(("--batches", 1), id="some"),
    ],
)
def test_every_kind_of_job_expands(tmp_path: Path, corpus: Path, options: tuple[object]) -> None:
    full, compact, expanded = (tmp_path / name for name in ("full", "compact", "expanded"))
    common = (*SMALL, "--method", "tables", *options)
    succeed("run", corpus, "--out", full, *common)
    succeed("run", corpus, "--out", compact, *common, "--artifact", "compact")
    result = succeed("expand", compact, "--out", expanded, "--device", "cpu", "--json").json
    assert contents(full) == contents(expanded)
    assert result["artifact"] == "full"
    assert result["windows"] == read_manifest(full).windows["count"]


def test_the_choice_of_method_does_not_change_the_files(tmp_path: Path, corpus: Path) -> None:
    for name, method in (("one", "auto"), ("two", "tables")):
        succeed("run", corpus, "--out", tmp_path / name, *SMALL, "--method", method)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("manifest.json", "SHA256SUMS"):
        assert one.pop(name) != two.pop(name)
    assert one == two


def test_a_compact_export_takes_4_bytes_a_token_and_the_tables(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="It is a truth universally acknowledged. " * 4000)
    out = tmp_path / "out"
    widths = ("--context-length", 1024, "--d-model", 64, "--heads", 4)
    options = (*widths, "--artifact", "compact", "--no-save-weights", "--device", "cpu")
    succeed("run", corpus, "--out", out, *options)
    manifest = read_manifest(out)
    tokens = manifest.tokens["count"]
    (tables,) = manifest.of_kind("tables")
    rest = sum(entry.bytes for entry in manifest.files) - tables.bytes
    assert tokens > 20_000
    assert rest <= 4.1 * tokens
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "run.json", "SHA256SUMS", "tables.safetensors", "tokens"
    }  # fmt: skip


def test_without_weights_their_hash_and_source_are_kept(tmp_path: Path, corpus: Path) -> None:
    for name, extra in (("with", ()), ("without", ("--no-save-weights",))):
        succeed("run", corpus, "--out", tmp_path / name, *SMALL, *extra)
    (weights,) = read_manifest(tmp_path / "with").of_kind("weights")
    manifest = read_manifest(tmp_path / "without")
    assert manifest.of_kind("weights") == []
    assert manifest.layer is not None
    assert manifest.layer["weights_sha256"] == weights.sha256
    assert manifest.layer["source"] == "seed"
    shutil.copy(tmp_path / "with" / "weights.safetensors", tmp_path / "own.safetensors")
    options = ("--weights", tmp_path / "own.safetensors", "--context-length", 16)
    succeed("run", corpus, "--out", tmp_path / "own", *options, "--no-save-weights")
    layer = read_manifest(tmp_path / "own").layer
    assert layer is not None
    assert (layer["source"], layer["file"]) == ("weights", "own.safetensors")
    assert layer["weights_sha256"] == weights.sha256


@pytest.mark.parametrize("name", ["tables", "weights", "tokens/tokens-00001"])
def test_a_damaged_file_is_named_and_nothing_is_left(
    tmp_path: Path, compact: Path, name: str
) -> None:
    path = compact / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    result = qkvmill("expand", compact, "--out", tmp_path / "full")
    assert result.status == 1
    assert f"{path} is damaged: its bytes do not match the hash" in result.stderr
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("name", ["tables", "weights", "tokens/tokens-00001"])
def test_a_missing_file_is_named_and_nothing_is_left(
    tmp_path: Path, compact: Path, name: str
) -> None:
    (compact / f"{name}.safetensors").unlink()
    result = qkvmill("expand", compact, "--out", tmp_path / "full")
    assert result.status == 1
    assert f"{name}.safetensors could not be read: No such file" in result.stderr
    assert result.stderr.endswith(f"; run qkvmill verify {compact}\n")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("name", ["tables", "tokens/tokens-00001"])
def test_a_fifo_or_a_link_out_of_a_compact_export_is_refused(
    tmp_path: Path, compact: Path, name: str
) -> None:
    path = compact / f"{name}.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    result = qkvmill("expand", compact, "--out", tmp_path / "full")
    assert (result.status, "is a link that leads out" in result.stderr) == (1, True)
    path.unlink()
    os.mkfifo(path)
    result = qkvmill("expand", compact, "--out", tmp_path / "full")
    assert (result.status, "is not a regular file" in result.stderr) == (1, True)
    assert not (tmp_path / "full").exists()


def test_what_cannot_be_expanded_is_said(tmp_path: Path, export: Path, compact: Path) -> None:
    def error(*arguments: object) -> str:
        result = qkvmill("expand", *arguments)
        assert result.status in (1, 2)
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "is a full export already" in error(export, "--out", tmp_path / "full")
    assert "is the compact export itself" in error(compact, "--out", compact)
    assert "holds no finished export" in error(tmp_path, "--out", tmp_path / "full")
    other = small_export(tmp_path / "other", "--seed", 1)
    assert "holds a finished export of other options" in error(compact, "--out", other)
    assert "--device 'x'" in error(compact, "--out", tmp_path / "full", "--device", "x")


def test_a_full_export_that_is_there_already_is_left_alone(compact: Path, export: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in export.rglob("*")}
    result = succeed("expand", compact, "--out", export, "--device", "cpu")
    assert "holds this very export already, finished: nothing is done" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in export.rglob("*")} == before


def test_overwrite_replaces_a_full_export(compact: Path, export: Path) -> None:
    expected = contents(export)
    succeed("expand", compact, "--out", export, "--overwrite", "--device", "cpu")
    assert contents(export) == expected


def test_a_compact_export_is_shown_like_a_full_one(export: Path, compact: Path) -> None:
    for arguments in (("--window", 3), ("--window", 3, "--json")):
        full = succeed("inspect", export, *arguments).stdout
        assert full == succeed("inspect", compact, *arguments).stdout
    text = succeed("inspect", compact).stdout
    for expected in ("artifact", "compact", "from the tables", "tables.safetensors", "x "):
        assert expected in text


def test_tables_that_lie_are_found_by_verify(compact: Path) -> None:
    tensors = load_file(compact / "tables.safetensors")
    manifest = json.loads((compact / "manifest.json").read_text())
    entry = next(e for e in manifest["files"] if e["kind"] == "tables")
    assert entry["tensors"]["token_table"]["shape"] == list(tensors["token_table"].shape)
    entry["kind"] = "other"
    (compact / "manifest.json").write_text(json.dumps(manifest))
    assert "a compact export has one file of tables" in qkvmill("verify", compact).stderr


def test_bits_do_not_hang_on_threads(tmp_path: Path, corpus: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            succeed("run", corpus, "--out", out, *SMALL, "--artifact", "compact")
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("job", "batch_size", 0),
        ("job", "shard_size", "x"),
        ("job", "dtype", "float8"),
        ("windows", "context_length", 17),
        ("windows", "count", 10**6),
        ("layer", "head_dim", 3),
        ("compute", "method_reason", None),
    ],
)
def test_a_garbled_manifest_is_one_line(
    tmp_path: Path, compact: Path, section: str, key: str, value: object
) -> None:
    path = compact / "manifest.json"
    manifest = json.loads(path.read_text())
    if value is None:
        del manifest[section][key]
    else:
        manifest[section][key] = value
    path.write_text(json.dumps(manifest))
    result = qkvmill("expand", compact, "--out", tmp_path / "full", "--quiet")
    assert result.status == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "full" / "manifest.json").exists()


SMALLER = ("--batch-size", 1, "--shard-size", "15kB", "--vocab-size", "corpus")


@pytest.fixture
def half(tmp_path: Path, corpus: Path) -> tuple[object, ...]:
    """An `expand` whose third shard could not be written; returns the command."""
    succeed("run", corpus, "--out", tmp_path / "compact", *SMALL, *SMALLER, "--artifact", "compact")
    command = ("expand", tmp_path / "compact", "--out", tmp_path / "full", "--device", "cpu")
    real = vars(jobshards)["write_pieces"]

    def some(root: Path, name: str, *rest: Any, **options: Any) -> object:
        if int(name[13:18]) > 2:
            raise ExportError("the disk is gone")
        return real(root, name, *rest, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jobshards, "write_pieces", some)
        assert qkvmill(*command).status == 1
    assert len(shards(tmp_path / "full")) == 2
    return command


def shards(out: Path) -> list[str]:
    return sorted(os.listdir(out / "shards"))


@pytest.mark.parametrize("error", [StoppedError(2), ExportError("the disk is full")])
def test_what_interrupts_a_resumed_expand_loses_nothing_that_is_done(
    tmp_path: Path, half: tuple[object, ...], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    for place in ("sha256_of", "open_source"):
        with monkeypatch.context() as patched:
            patched.setattr(f"jobs.expand.{place}", fail)
            assert qkvmill(*half).status != 0
        assert len(shards(tmp_path / "full")) == 2
    succeed(*half)
    succeed("verify", tmp_path / "full")


def test_a_damaged_source_loses_nothing_that_is_done(
    tmp_path: Path, half: tuple[object, ...]
) -> None:
    path = tmp_path / "compact/tables.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    assert "is damaged: its bytes do not match" in qkvmill(*half).stderr
    path.write_bytes(data)
    assert "going on" in succeed(*half).stderr
    succeed("verify", tmp_path / "full")


@pytest.mark.parametrize("how", ["edited", "cut"])
def test_a_source_that_changes_after_it_was_checked_changes_nothing(
    tmp_path: Path, corpus: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact, full = tmp_path / "compact", tmp_path / "full"
    options = (*SMALL, *SMALLER, "--export", "qkv", "--export", "features")
    succeed("run", corpus, "--out", compact, *options, "--artifact", "compact")
    succeed("expand", compact, "--out", tmp_path / "expected", "--device", "cpu")
    real = vars(expand)["write_shards"]

    def write_shards(*arguments: Any) -> object:
        for path in compact.rglob("*.safetensors"):
            with path.open("r+b") as file:
                if how == "cut":
                    file.truncate(4096)
                else:
                    size = file.seek(0, os.SEEK_END) // 3
                    file.seek(-size, os.SEEK_END)
                    file.write(bytes(size))
        return real(*arguments)

    monkeypatch.setattr(expand, "write_shards", write_shards)
    succeed("expand", compact, "--out", full, "--device", "cpu")
    assert contents(full) == contents(tmp_path / "expected")


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, compact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vars(expand)["open_source"]

    def open_source(*arguments: Any) -> object:
        os.utime(compact / "tables.safetensors", ns=(1, 1))
        return real(*arguments)

    monkeypatch.setattr(expand, "open_source", open_source)
    result = qkvmill("expand", compact, "--out", tmp_path / "full", "--device", "cpu")
    assert result.status == 1
    assert "tables.safetensors changed while it was read" in result.stderr
    assert not (tmp_path / "full").exists()


def test_an_export_is_not_expanded_into_itself(tmp_path: Path, compact: Path) -> None:
    (tmp_path / "link").symlink_to(compact)
    for out in (compact / "shards", tmp_path / "link/a/b", tmp_path):
        result = qkvmill("expand", compact, "--out", out, "--device", "cpu", "--overwrite")
        assert result.status == 1
        assert "lie in each other; give another folder" in result.stderr
    succeed("verify", compact)
