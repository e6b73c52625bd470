"""--boundaries and --tail through the command line, against windows cut by lists and loops."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from exporters import spans
from exporters.layerfile import load_layer
from exporters.manifest import read_manifest
from exporters.reading import open_export
from jobs import stream
from jobs.tokenizer import tiktoken_encoding
from tests.helpers import assert_within_rule, qkvmill, succeed, write_corpus
from tests.plainwindows import plain_held, plain_random, plain_tensors, plain_windows

END_OF_TEXT = 50256
TEXTS = {
    "a": "The quick brown fox jumps over the lazy dog. " * 5,
    "b": "!",
    "c": "Hi",
    "d": "Sphinx of black quartz, judge my vow.\n" * 3,
    "e": "大江南北 2002 年的第一场雪",
    "f": "?",
}
T = 8
JOB = (
    "--tokenizer", "gpt2", "--context-length", T, "--d-model", 16, "--heads", 2, "--device", "cpu",
    "--vocab-size", "corpus", "--shard-size", "5kB", "--method", "tables",
    "--export", "tokens", "--export", "features", "--export", "qkv",
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "split": {"boundaries": "split"},
    "split-pad": {"boundaries": "split", "tail": "pad"},
    "split-pad-overlapping": {"boundaries": "split", "tail": "pad", "stride": 3},
    "split-pad-apart": {"boundaries": "split", "tail": "pad", "stride": 11},
    "split-pad-some": {"boundaries": "split", "tail": "pad", "batch-size": 3, "batches": 3},
    "split-pad-no-separator": {"boundaries": "split", "tail": "pad", "separator": "none"},
    "split-overlapping": {"boundaries": "split", "stride": 1},
    "pad": {"tail": "pad"},
    "pad-overlapping": {"tail": "pad", "stride": 5},
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", **TEXTS)


def plain_stream(separator: str) -> tuple[list[int], list[int], list[int]]:
    """The ids of TEXTS, where their documents begin, and how many tokens each has."""
    encoding, _ = tiktoken_encoding("gpt2")
    ids: list[int] = []
    starts: list[int] = []
    for text in TEXTS.values():
        if starts and separator == "eot":
            ids.append(END_OF_TEXT)
        starts.append(len(ids))
        ids += encoding.encode_ordinary(text)
    ends = [*starts[1:], len(ids)]
    return ids, starts, [end - start for start, end in zip(starts, ends, strict=True)]


def flags(options: dict[str, Any]) -> list[object]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def windows_of(out: Path) -> list[dict[str, Tensor]]:
    export = open_export(out)
    return [export[index] for index in range(len(export))]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_windows_are_those_of_plain_loops_and_expand_gives_the_same_bytes(
    tmp_path: Path, corpus: Path, case: dict[str, Any]
) -> None:
    full, compact, expanded = (tmp_path / name for name in ("full", "compact", "expanded"))
    result = succeed("run", corpus, "--out", full, *JOB, *flags(case), "--json").json
    succeed("run", corpus, "--out", compact, *JOB, *flags(case), "--artifact", "compact")
    succeed("expand", compact, "--out", expanded, "--device", "cpu")
    assert contents(full) == contents(expanded)
    for out in (full, compact):
        succeed("verify", out, "--sample", 10**6)
        assert (out / "windows.safetensors").exists() == (case.get("boundaries") == "split")

    ids, starts, lengths = plain_stream(case.get("separator", "eot"))
    boundaries, tail = case.get("boundaries", "ignore"), case.get("tail", "drop")
    most = 9 if "batches" in case else None
    expected = plain_windows(lengths, T, case.get("stride", T), boundaries, tail, most)
    for out in (full, compact):
        found = windows_of(out)
        assert [int(window["window_start"]) for window in found] == [start for start, _ in expected]
        for window, place in zip(found, expected, strict=True):
            plain = plain_tensors(ids, starts, place, T, END_OF_TEXT)
            for name in ("input_ids", "target_ids", "document_ids"):
                assert window[name].tolist() == plain[name], name
            assert ("mask" in window) == (tail == "pad")
            assert tail == "drop" or window["mask"].tolist() == plain["mask"]
        stacked = {name: torch.stack([window[name] for window in found]) for name in found[0]}
        layer = load_layer(out / "weights.safetensors", context_length=T)
        assert_within_rule([stacked[name] for name in "qkv"], layer, stacked["input_ids"])

    padded = [pairs for _, pairs in expected if pairs < T]
    least = 2 if tail == "pad" else T + 1
    assert {
        "documents": 6,
        "windows": len(expected),
        "boundaries": boundaries,
        "tail": tail,
        "padded_windows": len(padded),
        "padded_places": sum(T - pairs for pairs in padded),
        "dropped_tokens": len(ids) - plain_held(expected),
        "short_documents": sum(n < least for n in lengths) if boundaries == "split" else 0,
    }.items() <= result.items()


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_random_windows_within_documents(tmp_path: Path, corpus: Path, artifact: str) -> None:
    out = tmp_path / "out"
    options = ("--boundaries", "split", "--sampling", "random", "--batch-size", 4, "--batches", 3,
               "--seed", 5, "--artifact", artifact)  # fmt: skip
    result = succeed("run", corpus, "--out", out, *JOB, *options, "--json").json
    ids, starts, lengths = plain_stream("eot")
    valid = sum(max(0, tokens - T) for tokens in lengths)
    generator = torch.Generator().manual_seed(5)
    draws = [n for _ in range(3) for n in torch.randint(0, valid, (4,), generator=generator)]
    expected = plain_random(lengths, T, [int(number) for number in draws])
    found = windows_of(out)
    for window, start in zip(found, expected, strict=True):
        plain = plain_tensors(ids, starts, (start, T), T, END_OF_TEXT)
        assert window["window_start"] == start
        assert window["input_ids"].tolist() == plain["input_ids"]
        assert window["document_ids"].tolist() == plain["document_ids"]
        assert len(set(window["document_ids"].tolist())) == 1
    held = plain_held([(start, T) for start in expected])
    assert result["dropped_tokens"] == len(ids) - held
    assert result["short_documents"] == sum(tokens <= T for tokens in lengths)
    succeed("verify", out, "--sample", 100)
    if artifact == "compact":
        full, expanded = tmp_path / "full", tmp_path / "expanded"
        succeed("run", corpus, "--out", full, *JOB, *options[:-1], "full")
        succeed("expand", out, "--out", expanded, "--device", "cpu")
        assert contents(full) == contents(expanded)


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_places_are_written_and_read_in_parts(
    tmp_path: Path, corpus: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", corpus, *JOB, *flags(CASES["split-pad-overlapping"]), "--artifact", artifact)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    succeed(*command, "--out", whole)
    monkeypatch.setattr(spans, "BLOCK", 3)
    monkeypatch.setattr(stream, "PART_TOKENS", 7)
    succeed(*command, "--out", parts)
    succeed("verify", parts, "--sample", 100)
    starts = "windows.safetensors"
    assert (whole / starts).read_bytes() == (parts / starts).read_bytes()
    for one, other in zip(windows_of(whole), windows_of(parts), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_tokens_mask_is_exported_all_the_same(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    given = ("--tail", "pad", "--export", "qkv", "--method", "direct")
    succeed("run", corpus, "--out", out, *JOB[:12], *given)
    (path,) = (out / "shards").iterdir()
    assert load_file(path).keys() == {"window_start", "mask", "q", "k", "v"}


@pytest.mark.parametrize("method", ["direct", "tables"])
def test_a_stream_shorter_than_a_window_is_padded(tmp_path: Path, method: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="Hello there")
    for artifact in ("full", "compact")[: 2 if method == "tables" else 1]:
        out = tmp_path / artifact
        options = ("--tail", "pad", "--artifact", artifact, "--method", method)
        succeed("run", corpus, "--out", out, *JOB, *options)
        (window,) = windows_of(out)
        assert window["mask"].tolist() == [True] + [False] * 7
        assert window["input_ids"].tolist()[1:] == [END_OF_TEXT] * 7
        succeed("verify", out, "--sample", 1)
        assert read_manifest(out).tokens["distinct"] == 2  # padding is no token of the corpus


def test_an_embedding_without_a_row_for_the_padding_is_an_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="Hello there")
    options = (*JOB, "--vocab-size", 50000, "--tail")
    succeed("run", corpus, "--out", tmp_path / "out", *options, "drop", "--context-length", 1)
    result = qkvmill("run", corpus, "--out", tmp_path / "other", *options, "pad")
    assert result.status == 2
    assert "50256" in result.stderr
    assert not (tmp_path / "other").exists()


def test_no_document_long_enough_says_what_to_do(tmp_path: Path, corpus: Path) -> None:
    longest = max(plain_stream("eot")[2])
    command = (corpus, "--out", tmp_path / "out", *JOB, "--boundaries", "split")
    for name in ("run", "plan"):
        result = qkvmill(name, *command, "--context-length", 1000)
        assert result.status == 1
        assert f"the longest document has {longest} tokens" in result.stderr.splitlines()[-1]
        assert "--tail pad or --boundaries ignore" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_padding_has_no_effect_on_random_windows(tmp_path: Path, corpus: Path) -> None:
    drawn = ("--sampling", "random", "--tail", "pad")
    result = qkvmill("run", corpus, "--out", tmp_path / "out", *JOB, *drawn)
    assert result.status == 2
    assert "--tail pad has no effect with --sampling random" in result.stderr


def test_a_context_beyond_every_disk_is_no_reason_to_pad_to_it(
    tmp_path: Path, corpus: Path
) -> None:
    options = ("--tail", "pad", "--boundaries", "split", "--context-length", 2**40)
    result = qkvmill("run", corpus, "--out", tmp_path / "out", *options, "--export", "tokens")
    assert result.status == 1
    assert "its disk has" in result.stderr


def test_a_run_goes_on_with_the_places_that_are_kept(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, *flags(CASES["split-pad"]))
    succeed(*command, "--out", tmp_path / "expected")

    def fail(*_: object) -> object:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr("jobs.shards.write_pieces", fail)
    assert qkvmill(*command, "--out", out).status == 1
    before = (out / "windows.safetensors").stat().st_mtime_ns
    monkeypatch.undo()
    assert "unfinished" in qkvmill(*command, "--out", out, "--stride", 5).stderr
    monkeypatch.setattr("jobs.starts.write_pieces", fail)
    succeed(*command, "--out", out)
    assert (out / "windows.safetensors").stat().st_mtime_ns == before
    assert contents(out) == contents(tmp_path / "expected")


def test_a_padded_window_is_shown_with_what_is_real(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *JOB, *flags(CASES["split-pad"]))
    ids, _, lengths = plain_stream("eot")
    places = plain_windows(lengths, T, T, "split", "pad")
    index = places.index((lengths[0] + lengths[1], 1))
    record = succeed("inspect", out, "--window", index, "--json").json
    start = places[index][0]
    assert record["padded_places"] == 7
    assert record["input_ids"] == [ids[start], *[END_OF_TEXT] * 7]
    assert (record["input_text"], record["target_text"]) == ("Hi", "<|endoftext|>")
    assert record["documents"] == [{"index": 2, "name": "c.txt"}]
    text = " ".join(succeed("inspect", out).stdout.split())
    for shown in (" boundaries split ", " tail pad ", " [W, T 8] "):
        assert shown in text
