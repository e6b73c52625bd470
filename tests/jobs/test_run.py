"""Whole jobs through the command line, looking at what was stored."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from exporters.layerfile import load_layer, save_layer
from exporters.manifest import read_manifest
from jobs import stream
from kernels import reference
from kernels.layer import DTYPES, Norm, seeded_layer
from tests.helpers import (
    DATA,
    ROOT,
    SMALL,
    assert_within_rule,
    qkvmill,
    random_layer,
    succeed,
    write_corpus,
)

END_OF_TEXT = 100257
TOKENS = ("--context-length", 16, "--export", "tokens")


def shards(out: Path) -> dict[str, Tensor]:
    """All shards of an export, joined."""
    parts = [load_file(path) for path in sorted((out / "shards").iterdir())]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def sums(out: Path) -> str:
    return (out / "SHA256SUMS").read_text()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(
        tmp_path / "corpus",
        a="The quick brown fox jumps over the lazy dog. " * 30,
        b="<|endoftext|> is text here, and so is <|fim_prefix|>.\n" * 8,
        c="大江南北 2002 年的第一场雪\r\n" * 12,
    )


def test_the_stream_has_end_of_text_between_documents_only(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    result = succeed("run", corpus, "--out", out, *TOKENS, "--json").json
    stream = load_file(out / "tokens/tokens-00001.safetensors")
    ids, starts = stream["input_ids"], stream["document_starts"].tolist()
    places = (ids == END_OF_TEXT).nonzero().flatten().tolist()
    assert [start - 1 for start in starts[1:]] == places
    assert result["documents"] == 3
    assert read_manifest(out).tokens["separators"] == 2
    without = tmp_path / "without"
    succeed("run", corpus, "--out", without, *TOKENS, "--separator", "none")
    bare = load_file(without / "tokens/tokens-00001.safetensors")["input_ids"]
    assert torch.equal(ids[ids != END_OF_TEXT], bare)


def test_windows_follow_the_stream_and_know_their_documents(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *TOKENS, "--stride", 5)
    stream = load_file(out / "tokens/tokens-00001.safetensors")
    ids, starts = stream["input_ids"], stream["document_starts"]
    tensors = shards(out)
    for row, start in enumerate(tensors["window_start"].tolist()):
        assert start == 5 * row
        assert torch.equal(ids[start : start + 16], tensors["input_ids"][row])
        assert torch.equal(ids[start + 1 : start + 17], tensors["target_ids"][row])
        owners = [int((starts <= place).sum()) - 1 for place in range(start, start + 16)]
        assert owners == tensors["document_ids"][row].tolist()


def test_the_tail_is_counted(tmp_path: Path, corpus: Path) -> None:
    result = succeed("run", corpus, "--out", tmp_path / "out", *SMALL, "--json").json
    assert result["tokens"] - (16 * result["windows"] + 1) == result["dropped_tokens"]
    assert 0 <= result["dropped_tokens"] < 16


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("method", ["direct", "tables"])
def test_q_k_and_v_of_a_weights_file_are_within_the_error_rule(
    tmp_path: Path, corpus: Path, method: str, layout: str, norm: Norm, dtype: str
) -> None:
    layer = random_layer(d=48, heads=6, kv_heads=2, head_dim=8, norm=norm, vocabulary_size=100300)
    save_layer(tmp_path, "w.safetensors", layer)
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, "--weights", tmp_path / "w.safetensors", "--dtype", dtype,
        "--context-length", 16, "--layout", layout, "--device", "cpu", "--shard-size", "90kB",
        "--method", method,
    )  # fmt: skip
    tensors = shards(out)
    found = [tensors[name] for name in "qkv"]
    assert {t.dtype for t in found} == {DTYPES[dtype]}
    if layout == "bthd":
        assert [t.shape[2] for t in found] == [6, 2, 2]
        found = [t.transpose(1, 2) for t in found]
    assert_within_rule(found, layer.to(DTYPES[dtype]), tensors["input_ids"])


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rope", "none"])
def test_a_seeded_layer_is_made_as_in_plain_torch(
    tmp_path: Path, corpus: Path, positions: Any
) -> None:
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, *SMALL, "--kv-heads", 2, "--seed", 5, "--positions", positions
    )  # fmt: skip
    layer = seeded_layer(
        vocabulary_size=100277, d_model=32, heads=4, kv_heads=2,
        context_length=16, positions=positions, seed=5,
    )  # fmt: skip
    stored = load_layer(out / "weights.safetensors", context_length=16)
    assert layer.tensors().keys() == stored.tensors().keys()
    for name, tensor in layer.tensors().items():
        assert torch.equal(tensor, stored.tensors()[name])
    tensors = shards(out)
    assert_within_rule([tensors[n] for n in "qkv"], layer, tensors["input_ids"])


@pytest.mark.parametrize("method", ["direct", "tables"])
def test_q_and_k_before_they_turn(tmp_path: Path, corpus: Path, method: str) -> None:
    turned, before = tmp_path / "turned", tmp_path / "before"
    common = (*SMALL, "--positions", "rope", "--method", method)
    succeed("run", corpus, "--out", turned, *common)
    succeed("run", corpus, "--out", before, *common, "--pre-rope")
    layer = load_layer(turned / "weights.safetensors", context_length=16)
    plain = load_layer(before / "weights.safetensors", context_length=16)
    assert (layer.positions, plain.positions) == ("rope", "none")
    expected, found = shards(turned), shards(before)
    assert torch.equal(expected["v"], found["v"])
    for name in "qk":
        assert torch.equal(expected[name][:, :, 0], found[name][:, :, 0])  # position 0 turns by 0
        rotated = reference.rotate(layer, found[name])
        assert not torch.equal(expected[name], found[name])
        assert torch.allclose(expected[name], rotated, atol=1e-5)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_features_are_rounded_once(tmp_path: Path, corpus: Path, dtype: str) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *SMALL, "--dtype", dtype, "--export", "features")
    tensors = shards(out)
    assert {"window_start", "x", "y"} == tensors.keys()
    layer = load_layer(out / "weights.safetensors", context_length=16)
    ids = load_file(out / "tokens/tokens-00001.safetensors")["input_ids"]
    for name, shift in (("x", 0), ("y", 1)):
        rows = torch.stack([ids[s + shift : s + shift + 16] for s in tensors["window_start"]])
        exact = reference.embed(reference.in_float64(layer), rows)
        assert torch.equal(exact.float().to(DTYPES[dtype]), tensors[name])


def test_the_weights_that_were_used_give_the_same_shards_again(
    tmp_path: Path, corpus: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    succeed("run", corpus, "--out", first, *SMALL, "--dtype", "bfloat16")
    succeed(
        "run", corpus, "--out", second, "--weights", first / "weights.safetensors",
        "--context-length", 16, "--dtype", "bfloat16", "--device", "cpu",
    )  # fmt: skip
    for name, tensor in shards(first).items():
        assert torch.equal(tensor, shards(second)[name])


def test_the_same_command_gives_the_same_bytes_in_another_folder_and_corpus_place(
    tmp_path: Path, corpus: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "other/name"
    elsewhere = tmp_path / "moved"
    shutil.copytree(corpus, elsewhere)
    succeed("run", corpus, "--out", first, *SMALL, "--export", "features", "--export", "qkv")
    command = [sys.executable, "-m", "jobs", "run", "moved", "--out", str(second)]
    command += [str(o) for o in SMALL] + ["--export", "features", "--export", "qkv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert sums(first) == sums(second)
    succeed("run", corpus, "--out", first, *SMALL, "--export", "features", "--export", "qkv",
            "--overwrite")  # fmt: skip
    assert sums(first) == sums(second)


def test_shards_keep_to_their_size_and_hold_whole_batches(tmp_path: Path, corpus: Path) -> None:
    whole, small = tmp_path / "whole", tmp_path / "small"
    succeed("run", corpus, "--out", whole, *SMALL)
    succeed("run", corpus, "--out", small, *SMALL, "--batch-size", 3, "--shard-size", "50kB")
    entries = read_manifest(small).of_kind("windows")
    assert len(entries) > 2
    assert {6} == {entry.count for entry in entries[:-1]}
    for entry in entries:
        assert sum(t.nbytes for t in load_file(small / entry.name).values()) <= 50_000
    for name, tensor in shards(whole).items():
        torch.testing.assert_close(tensor, shards(small)[name], rtol=1e-5, atol=1e-5)


def test_batches_limit_sequential_windows(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    result = succeed(
        "run", corpus, "--out", out, *SMALL, "--batches", 2, "--batch-size", 3, "--json"
    )
    assert result.json["windows"] == 6
    stream = read_manifest(out).tokens["count"]
    assert result.json["dropped_tokens"] == stream - (6 * 16 + 1)


def test_replaced_and_skipped_are_counted_shown_and_stored(tmp_path: Path, corpus: Path) -> None:
    (corpus / "d.txt").write_bytes(b"caf\xe9 and \xff\xfe\n" * 9)
    (corpus / "image.png").write_bytes(b"\x89PNG")
    out = tmp_path / "out"
    result = succeed("run", corpus, "--out", out, *SMALL, "--text-errors", "replace")
    stored = read_manifest(out).corpus
    assert (stored["replaced_sequences"], stored["skipped_files"]) == (27, 1)
    assert "27" in result.stdout
    named = f"files that are not read: 1, such as {corpus / 'image.png'}"
    assert named in result.stderr
    planned = ("plan", corpus, "--out", out, *SMALL, "--text-errors", "replace")
    assert named in succeed(*planned).stderr


def test_what_is_not_there_to_be_counted_shares_a_line(tmp_path: Path, corpus: Path) -> None:
    result = succeed("run", corpus, "--out", tmp_path / "out", "--export", "tokens", *SMALL[2:4])
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(" none of "))
    assert line.split("none of")[1].strip() == (
        "padded windows, padded places, short documents, skipped files, replaced sequences, "
        "bad records"
    )
    for name in ("device", "kernel", "method"):
        assert f"\n {name} " not in result.stdout


def test_exports_beside_the_texts_that_they_were_made_of_are_no_corpus(
    tmp_path: Path, corpus: Path
) -> None:
    first, second = corpus / "first", corpus / "second"
    succeed("run", corpus, "--out", first, *SMALL)
    result = succeed("run", corpus, "--out", second, *SMALL)
    assert f"{first} (an export; name it itself to read its tokens)" in result.stderr
    assert read_manifest(second).tokens == read_manifest(first).tokens


def test_the_choice_of_device_and_kernel_is_shown_and_stored(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    result = succeed("run", corpus, "--out", out, *SMALL)
    assert "computing on cpu with torch-cpu: the CPU was asked for" in result.stderr
    assert "method tables: 640 tokens to project are " in result.stderr
    compute = read_manifest(out).compute
    assert compute is not None
    assert (
        compute["device"], compute["method"], compute["kernel"]
    ) == ("cpu", "tables", "torch-cpu")  # fmt: skip
    assert compute["reason"] == "the CPU was asked for"
    assert compute["method_reason"].startswith("640 tokens to project are ")


def test_tokens_alone_need_no_layer(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *TOKENS)
    manifest = read_manifest(out)
    assert manifest.layer is None
    assert manifest.compute is None
    assert not (out / "weights.safetensors").exists()
    assert {"window_start", "input_ids", "target_ids", "document_ids"} == shards(out).keys()
    succeed("verify", out)


def test_nothing_of_the_work_is_left(export: Path) -> None:
    names = {path.name for path in export.iterdir()}
    assert names == {
        "manifest.json", "SHA256SUMS", "run.json", "tokens", "shards", "weights.safetensors"
    }  # fmt: skip


def test_an_unfinished_export_is_started_over_and_says_so(export: Path, tmp_path: Path) -> None:
    (export / ".work").mkdir()
    (export / "manifest.json").unlink()
    corpus = write_corpus(tmp_path / "new", a="Some other text. " * 30)
    result = succeed("run", corpus, "--out", export, *SMALL)
    assert "held an unfinished export: starting over" in result.stderr
    succeed("verify", export)


def test_a_failed_run_with_overwrite_keeps_the_finished_export(
    export: Path, tmp_path: Path
) -> None:
    before = sums(export)
    for culprit in (tmp_path / "missing.txt", "--weights"):
        arguments = [culprit] if culprit != "--weights" else [DATA, "--weights", tmp_path / "no"]
        result = qkvmill("run", *arguments, "--out", export, "--overwrite")
        assert result.status == 1
    assert before == sums(export)
    succeed("verify", export)


@pytest.mark.parametrize("name", ["gpt2", "p50k_edit", "o200k_harmony"])
def test_other_encodings_run(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    succeed("run", DATA / "corpus/mixed", "--out", out, *SMALL, "--tokenizer", name)
    succeed("verify", out)
    assert read_manifest(out).tokenizer["name"] == name


def test_what_is_not_as_expected_is_said(tmp_path: Path, corpus: Path) -> None:
    many = ("--batches", 1000, "--batch-size", 2, "--shard-size", 100)
    result = succeed("run", corpus, "--out", tmp_path / "out", *SMALL, *many)
    windows = read_manifest(tmp_path / "out").windows["count"]
    assert "more than --shard-size: each shard holds one window" in result.stderr
    assert f"the corpus gives {windows} windows, fewer than --batches 1000 of 2" in result.stderr


def test_a_run_that_fails_leaves_a_folder_that_was_there_and_what_is_not_ours(
    export: Path, tmp_path: Path
) -> None:
    (export / "notes.md").write_text("mine")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    assert qkvmill("run", bad, "--out", export, *SMALL, "--overwrite").status == 1
    assert os.listdir(export) == ["notes.md"]
    (tmp_path / "empty").mkdir()
    assert qkvmill("run", bad, "--out", tmp_path / "empty", *SMALL).status == 1
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("method", ["tables", "direct"])
@pytest.mark.parametrize("how", ["edited", "cut"])
def test_weights_that_change_after_they_were_read_change_nothing(
    tmp_path: Path, corpus: Path, how: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    save_layer(tmp_path, weights.name, random_layer(vocabulary_size=100300))
    command = ("run", corpus, "--weights", weights, *SMALL[:4], "--method", method,
               "--export", "qkv", "--export", "features")  # fmt: skip
    succeed(*command, "--out", tmp_path / "expected")

    def write_stream(*arguments: Any) -> object:
        with weights.open("r+b") as file:
            if how == "cut":
                file.truncate(4096)
            else:
                size = file.seek(0, os.SEEK_END) - 4096
                file.seek(4096)
                file.write(bytes(size))
        return stream.write_stream(*arguments)

    monkeypatch.setattr("jobs.run.write_stream", write_stream)
    succeed(*command, "--out", tmp_path / "out")
    found, expected = ((tmp_path / name / "SHA256SUMS").read_text() for name in ("out", "expected"))
    assert found == expected
