import gzip
import io
import json
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from exporters.layerfile import save_layer
from exporters.manifest import read_manifest
from exporters.space import readable
from jobs.estimate import estimate
from tests.helpers import DATA, SMALL, qkvmill, random_layer, succeed

ALL = ("--export", "tokens", "--export", "features", "--export", "qkv")
SPLIT = ("--boundaries", "split", "--tail", "pad", "--context-length", 100)


@pytest.mark.parametrize(
    "options",
    [
        (*SMALL, *ALL),
        (*SMALL, "--dtype", "bfloat16", "--stride", 3, "--shard-size", "200kB"),
        (*SMALL, "--vocab-size", "corpus", "--kv-heads", 2, "--positions", "none"),
        (*SMALL, "--sampling", "random", "--batches", 3),
        ("--context-length", 16, "--export", "tokens"),
        (*SMALL, *ALL, "--artifact", "compact"),
        (*SMALL, "--artifact", "compact", "--no-save-weights", "--sampling", "random"),
        (*SMALL, "--method", "tables", "--no-save-weights"),
        (*SMALL, "--method", "direct"),
        (*SMALL, "--artifact", "compact", "--positions", "rope"),
        (*SMALL, "--artifact", "compact", "--positions", "rope", "--pre-rope"),
        (*SMALL, *SPLIT, "--method", "tables"),
        (*SMALL, *SPLIT, "--artifact", "compact", "--batches", 5),
        (*SMALL, "--boundaries", "split", "--sampling", "random", "--batches", 3),
        (*SMALL, "--tail", "pad", "--stride", 7, "--separator", "none", "--method", "tables"),
    ],
    ids=[
        "all",
        "half",
        "grouped",
        "random",
        "tokens",
        "compact",
        "compact-random",
        "tables",
        "direct",
        "rope",
        "pre-rope",
        "split",
        "split-compact",
        "split-random",
        "pad",
    ],
)
def test_a_plan_is_what_a_run_then_does(tmp_path: Path, options: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    corpus = DATA / "corpus/mixed"
    plan = succeed("plan", corpus, "--out", out, *options, "--json").json
    assert os.listdir(tmp_path) == []
    run = succeed("run", corpus, "--out", out, *options, "--json").json
    for name in ("documents", "tokens", "windows", "shards", "skipped_files"):
        assert plan[name] == run[name], name
    for name in ("boundaries", "tail", "padded_windows", "padded_places", "short_documents"):
        assert plan[name] == run[name], name
    for name in ("distinct_tokens", "device", "kernel", "reason", "method", "method_reason"):
        assert plan[name] == run[name], name
    assert plan["dropped_tokens"] in (None, run["dropped_tokens"])
    assert plan["obstacle"] is None
    stored = {"tokens": 0, "weights": 0, "tables": 0, "windows": 0, "starts": 0}
    for entry in read_manifest(out).files:
        stored[entry.kind] += sum(t.nbytes for t in load_file(out / entry.name).values())
    stored["windows"] += stored.pop("starts")
    assert stored == {
        "tokens": plan["token_bytes"],
        "weights": plan["weight_bytes"],
        "tables": plan["table_bytes"] if "compact" in options else 0,
        "windows": plan["window_bytes"],
    }
    assert (plan["table_bytes"] > 0) == (plan["method"] == "tables")
    assert sum(stored.values()) == plan["total_bytes"] <= plan["disk_bytes"]


def test_a_plan_shows_the_method_and_its_reason(tmp_path: Path) -> None:
    arguments = ("plan", DATA / "corpus/mixed", "--out", tmp_path / "out", *SMALL)
    plan = succeed(*arguments, "--json").json
    shown = [" ".join(line.split()) for line in succeed(*arguments).stdout.splitlines()]
    assert f"method {plan['method']}" in shown
    assert f"method reason {plan['method_reason']}" in shown


def test_a_plan_reads_the_widths_of_a_weights_file(tmp_path: Path) -> None:
    layer = random_layer(kv_heads=2, vocabulary_size=100277)
    save_layer(tmp_path, "w.safetensors", layer)
    given = ("--weights", tmp_path / "w.safetensors", "--context-length", 16)
    plan = succeed("plan", DATA / "corpus/code", "--out", tmp_path / "out", *given, "--json").json
    assert plan["weight_bytes"] == sum(tensor.nbytes for tensor in layer.tensors().values())


def test_a_plan_names_what_would_stop_the_run(export: Path, tmp_path: Path) -> None:
    corpus = DATA / "notebook.txt"
    given = ("plan", corpus, "--out", export, *SMALL, "--json")
    assert "holds a finished export" in succeed(*given).json["obstacle"]
    assert succeed(*given, "--overwrite").json["obstacle"] is None
    many = ("--sampling", "random", "--batches", 10**12)
    endless = ("plan", corpus, "--out", tmp_path / "x", *SMALL, *many)
    assert "its disk has" in succeed(*endless, "--json").json["obstacle"]
    assert "known after the draw" in succeed(*endless).stdout


def test_a_plan_of_endless_batches_is_made_at_once(tmp_path: Path) -> None:
    many = ("--sampling", "random", "--batches", 10**12)
    result = qkvmill("plan", DATA / "notebook.txt", "--out", tmp_path / "out", *SMALL, *many)
    assert result.status == 0
    assert re.search(r"windows +8,000,000,000,000 ", result.stdout)


def test_a_small_corpus_is_planned_exactly(tmp_path: Path) -> None:
    given = ("plan", DATA / "corpus", "--out", tmp_path / "out", *SMALL)
    plan = succeed(*given, "--json").json
    assert (plan["exact"], plan["sampled_bytes"], plan["tokens_error"]) == (True, None, 0)
    assert plan == succeed(*given, "--exact", "--json").json
    assert "estimated" not in succeed(*given).stdout


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of 300 kB that counts as too large to be read as a whole."""
    monkeypatch.setattr("jobs.estimate.WHOLE_BYTES", 100_000)
    lines = [json.dumps({"text": f"{n} fish, red fish, blue fish"}) + "\n" for n in range(6000)]
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(lines[:3000]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[3000:]).encode()))
    (folder / "c.txt").write_text("One fish, two fish.\n" * 5000)
    return folder


def test_a_large_corpus_is_estimated_and_exact_reads_it(large: Path, tmp_path: Path) -> None:
    given = ("plan", large, "--out", tmp_path / "out", *SMALL)
    exact, plan = succeed(*given, "--exact", "--json").json, succeed(*given, "--json").json
    assert (exact["exact"], plan["exact"]) == (True, False)
    assert 0 < plan["sampled_bytes"] <= plan["corpus_bytes"]
    assert abs(plan["tokens"] - exact["tokens"]) <= plan["tokens_error"] + 64
    for name in ("windows", "shards", "documents", "total_bytes", "disk_bytes", "memory_bytes"):
        assert plan[name] == pytest.approx(exact[name], rel=0.05), name
    for name in ("replaced_sequences", "bad_records", "dropped_tokens"):
        assert plan[name] is None
        assert exact[name] is not None
    assert exact["method"] == plan["method"]


def test_an_estimate_is_shown_with_its_error(large: Path, tmp_path: Path) -> None:
    given = ("plan", large, "--out", tmp_path / "out", *SMALL)
    plan, shown = succeed(*given, "--json").json, succeed(*given).stdout
    assert f"{plan['tokens']:,} (estimated, +-{plan['tokens_error']:,} at 95%)" in shown
    read, held = readable(plan["sampled_bytes"]), readable(plan["corpus_bytes"])
    assert f"estimated from {read} of {held}; --exact reads all" in shown
    assert "bad records         not known from a sample" in shown


@pytest.mark.parametrize("kind", ["corpus", "encoding"])
def test_an_estimated_vocabulary_is_bounded_by_the_tokenizer(
    large: Path, tmp_path: Path, kind: str
) -> None:
    given = ("plan", large, "--out", tmp_path / "out", *SMALL, "--vocab-size", kind, "--json")
    rows = 100257 + 1 if kind == "corpus" else 100277
    width = 32 * (rows + 16 + 3 * 32) + 3 * 32
    assert 4 * width == succeed(*given).json["weight_bytes"]


def test_a_bad_record_in_the_sample_is_an_obstacle_or_skipped(large: Path, tmp_path: Path) -> None:
    with (large / "a.jsonl").open("a") as file:
        file.write('{"text": 7}\n' * 3000)
    given = ("plan", large, "--out", tmp_path / "out", *SMALL, "--json")
    obstacle = succeed(*given).json["obstacle"]
    assert "a field 'text' that is int, not a string; mend it" in obstacle
    skipped = succeed(*given[:-1], "--bad-records", "skip")
    assert "obstacle            none" in skipped.stdout
    assert "bad records, which are skipped" in skipped.stderr


def test_a_file_that_is_no_text_ends_a_plan_in_one_line(large: Path, tmp_path: Path) -> None:
    (large / "c.txt").write_bytes(bytes(range(256)) * 2000)
    result = qkvmill("plan", large, "--out", tmp_path / "out", *SMALL, "--quiet")
    assert result.status == 1
    assert "c.txt is binary, not text: byte" in result.stderr
    assert result.stderr.count("\n") == 1


def test_records_too_long_for_a_sample_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.estimate.WHOLE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps({"text": "word " * 2_000_000}))
    given = ("plan", tmp_path, "--out", tmp_path / "out", *SMALL)
    plan = succeed(*given)
    assert "no record begins in a sample of the corpus, so all of it is read" in plan.stderr
    assert "estimated" not in plan.stdout


def test_a_sample_without_a_document_that_is_long_enough_says_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.estimate.WHOLE_BYTES", 100)
    monkeypatch.setattr("jobs.plan.estimate", partial(estimate, probe_bytes=64))
    lines = [json.dumps({"text": f"{n} fish"}) + "\n" for n in range(9000)]
    lines[4321] = json.dumps({"text": "fish " * 40}) + "\n"
    (tmp_path / "a.jsonl").write_text("".join(lines))
    given = ("plan", tmp_path, "--out", tmp_path / "out", *SMALL, "--context-length", 32)
    plan = succeed(*given, "--boundaries", "split")
    assert "no window begins in a sample of the corpus, so all of it is read" in plan.stderr
    assert re.search(r"^\W*windows +1\b", plan.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"document_starts": np.array(0)}, "document_starts is no row of int64"),
        ({"input_ids": np.array([3, 2**32 + 5])}, "id 4294967301 at place 1 is no token of"),
    ],
    ids=["starts-that-are-no-row", "id-beyond-32-bits"],
)
def test_a_sample_of_a_token_file_is_checked_as_the_whole_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("jobs.estimate.WHOLE_BYTES", 10)
    path = tmp_path / "tokens.safetensors"
    save_file({"input_ids": np.arange(100)} | tensors, path)
    for exact in ([], ["--exact"]):
        given = qkvmill("plan", path, "--out", tmp_path / "out", *SMALL, "--quiet", *exact)
        assert given.status == 1
        assert f"Error: {path}: {said}" in given.stderr


def test_standard_input_is_planned_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.estimate.WHOLE_BYTES", 100)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"One fish, two fish.\n" * 500)))
    assert succeed("plan", "-", "--out", tmp_path / "out", *SMALL, "--json").json["exact"]


def test_a_plan_of_200_mb_reads_less_than_20(tmp_path: Path) -> None:
    texts = [path.read_text("utf-8") for path in sorted((DATA / "corpus").rglob("*.txt"))]
    block = "\n".join(texts * 20).encode()
    with (tmp_path / "a.txt").open("wb") as file:
        while file.tell() < 200_000_000:
            file.write(block)
    before, began = bytes_read(), time.process_time()
    plan = succeed("plan", tmp_path / "a.txt", "--out", tmp_path / "out", *SMALL, "--json").json
    assert bytes_read() - before < 20_000_000
    assert time.process_time() - began < 60
    assert 0 < plan["tokens_error"] < 0.2 * plan["tokens"]


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
