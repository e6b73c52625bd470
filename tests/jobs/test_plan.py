import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from exporters.layerfile import save_layer
from exporters.manifest import read_manifest
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
    assert "windows             8,000,000,000,000" in result.stdout
