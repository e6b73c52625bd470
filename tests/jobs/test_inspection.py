"""`inspect` through the command line, against torch on what safetensors itself loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporters.reading import open_export
from jobs import inspection
from tests.helpers import (
    NOTEBOOK,
    SMALL,
    qkvmill,
    recommit,
    succeed,
)


def stored(export: Path) -> dict[str, Tensor]:
    """Every tensor of all shards, by safetensors alone."""
    shards = [load_file(path) for path in sorted((export / "shards").glob("*"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def grouped(folder: Path, layout: str, *options: object) -> Path:
    """An export with four query heads for two key/value heads, in bfloat16."""
    out = folder / "out"
    succeed("run", NOTEBOOK, "--out", out, *SMALL, "--kv-heads", 2, "--vocab-size", "corpus",
            "--dtype", "bfloat16", "--layout", layout, *options)  # fmt: skip
    return out


def assert_statistics(found: dict[str, Any], tensor: Tensor) -> None:
    wide = tensor.double()
    assert found["dtype"] == str(tensor.dtype).removeprefix("torch.")
    assert found["shape"] == list(tensor.shape)
    assert (found["min"], found["max"]) == (wide.min(), wide.max())
    assert found["mean"] == pytest.approx(float(wide.mean()), rel=1e-12, abs=1e-15)
    assert found["std"] == pytest.approx(float(wide.std(correction=0)), rel=1e-12)
    assert found["zeros_share"] == int((tensor == 0).sum()) / tensor.numel()
    assert found["nan_share"] == found["infinite_share"] == 0


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_rows_of_a_head_are_in_the_json_in_full(tmp_path: Path, layout: str, artifact: str) -> None:
    out = grouped(tmp_path, layout, "--artifact", artifact)
    if artifact == "compact":
        succeed("expand", out, "--out", tmp_path / "full")
    tensors = stored(tmp_path / "full" if artifact == "compact" else out)
    record = succeed("inspect", out, "--window", 1, "--head", 3, "--json").json
    assert record["rows"].keys() == {"q", "k", "v"}
    for name, head, heads in (("q", 3, 4), ("k", 1, 2), ("v", 1, 2)):
        window = tensors[name][1]
        expected = window[head] if layout == "bhtd" else window[:, head]
        rows = record["rows"][name]
        assert rows == {"values": expected.tolist(), "head": head, "heads": heads}
    text = succeed("inspect", out, "--window", 1, "--head", 3).stdout
    assert "q, query head 3 of 4, [16 rows x 8 columns]" in text
    assert "k, key/value head 1 of 2, which query head 3 uses, [16 rows x 8 columns]" in text


def test_tensors_that_are_named_are_shown_and_no_others(export: Path) -> None:
    named = ("--tensor", "x", "--tensor", "document_ids", "--tensor", "window_start")
    record = succeed("inspect", export, "--window", 2, *named, "--json").json
    window = {name: tensor[2] for name, tensor in stored(export).items()}
    assert record["rows"] == {
        name: {"values": window[name].tolist(), "head": None, "heads": None}
        for name in ("x", "document_ids", "window_start")
    }
    text = succeed("inspect", export, "--window", 2, *named).stdout
    assert "document_ids [16]" in text
    assert "y [16 rows" not in text


def test_without_names_the_json_has_the_rows_that_are_shown(export: Path) -> None:
    record = succeed("inspect", export, "--window", 0, "--json").json
    assert record["rows"].keys() == {"x", "y"}
    assert record["rows"]["y"]["values"] == stored(export)["y"][0].tolist()


@pytest.mark.parametrize("batch_bytes", [1, 1 << 25], ids=["a-window", "many"])
def test_statistics_are_those_of_all_shards(
    export: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "BATCH_BYTES", batch_bytes)
    answer = succeed("inspect", export, "--stats", "--json").json
    tensors = stored(export)
    assert answer["window"] is None
    assert answer["tensors"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_statistics(answer["tensors"][name], tensor)


def test_statistics_of_a_window_are_of_it_alone(export: Path) -> None:
    given = ("--window", 5, "--stats", "--tensor", "q", "--tensor", "target_ids", "--json")
    answer = succeed("inspect", export, *given).json
    assert answer["window"] == 5
    assert answer["tensors"].keys() == {"q", "target_ids"}
    for name, found in answer["tensors"].items():
        assert_statistics(found, stored(export)[name][5])


def test_a_compact_export_has_the_statistics_of_the_full_one_and_of_its_tables(
    export: Path, compact: Path
) -> None:
    full = succeed("inspect", export, "--stats", "--json").json["tensors"]
    answer = succeed("inspect", compact, "--stats", "--json").json["tensors"]
    tables = load_file(compact / "tables.safetensors")
    assert answer.keys() == full.keys() | tables.keys()
    assert {name: answer[name] for name in full} == full
    for name, tensor in tables.items():
        assert_statistics(answer[name], tensor)
    only = succeed("inspect", compact, "--stats", "--tensor", "token_table", "--json").json
    assert only["tensors"] == {"token_table": answer["token_table"]}


def test_what_is_not_finite_is_counted_and_shown(export: Path) -> None:
    path = next((export / "shards").glob("shard-00001-*"))
    shard = load_file(path)
    shard["q"][0, 1, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save_file(shard, path, metadata={"format": "pt"})
    recommit(export)
    answer = succeed("inspect", export, "--stats", "--tensor", "q", "--json").json["tensors"]["q"]
    q = stored(export)["q"]
    assert (answer["nan"], answer["infinite"], answer["values"]) == (1, 2, q.numel())
    assert answer["mean"] == pytest.approx(float(q[q.isfinite()].double().mean()), rel=1e-12)
    result = succeed("inspect", export, "--window", 0, "--head", 1, "--json")
    rows = json.loads(result.stdout, parse_constant=pytest.fail)["rows"]["q"]["values"]
    assert rows[0][:3] == ["NaN", "Infinity", "-Infinity"]


def test_reading_some_tensors_gives_those_and_no_others(export: Path, compact: Path) -> None:
    tensors = stored(export)
    for place in (export, compact):
        batches = list(open_export(place).batches(3, names=["k", "y"]))
        assert all(batch.keys() == {"k", "y"} for batch in batches)
        for name in ("k", "y"):
            assert torch.equal(tensors[name], torch.cat([batch[name] for batch in batches]))
        with pytest.raises(ValueError, match="holds no tensor 'kk'"):
            next(open_export(place).batches(3, names=["kk"]))


def test_statistics_of_an_export_in_a_bucket_are_the_same(export: Path) -> None:
    url = "memory://inspected/first"
    memory = fsspec.filesystem("memory")
    try:
        memory.put(f"{export}/", url, recursive=True)
        found = succeed("inspect", url, "--stats", "--json").json
    finally:
        memory.store.clear()
    assert found == succeed("inspect", export, "--stats", "--json").json


MISTAKES: list[tuple[str, tuple[object, ...], int, str]] = [
    ("head-alone", ("--head", 0), 2, "--head has no effect without --window"),
    ("tensor-alone", ("--tensor", "q"), 2, "--tensor has no effect without --window or --stats"),
    ("tokenizer-alone", ("--tokenizer", "gpt2"), 2, "--tokenizer has no effect without --window"),
    ("head-stats", ("--window", 0, "--head", 0, "--stats"), 2, "--head has no effect with --stats"),
    ("tokenizer-stats", ("--window", 0, "--stats", "--tokenizer", "gpt2"), 2, "with --stats"),
    ("no-head", ("--window", 0, "--tensor", "q"), 2, "--tensor q has heads; give --head too"),
    ("head-of-x", ("--window", 0, "--head", 0, "--tensor", "x"), 2, "--head is of q, k and v"),
    ("head-beyond", ("--window", 0, "--head", 4), 1, "query heads 0 to 3; --head 4 is none of"),
    ("head-below", ("--window", 0, "--head", -1), 1, "--head -1 is none of them"),
    ("window-beyond", ("--window", 10**6, "--stats"), 1, "--window 1000000 is none of them"),
    ("near", ("--stats", "--tensor", "input-id"), 1, "'input-id'; did you mean input_ids?"),
    ("far", ("--window", 0, "--tensor", "zz"), 1, "no tensor 'zz'; it has window_start, input_ids"),
    ("table", ("--window", 0, "--stats", "--tensor", "token_table"), 1, "a window of "),
]


@pytest.mark.parametrize(
    ("options", "status", "culprit"), [pytest.param(*case[1:], id=case[0]) for case in MISTAKES]
)
def test_what_has_no_effect_or_is_not_there_is_one_line(
    compact: Path, options: tuple[object, ...], status: int, culprit: str
) -> None:
    result = qkvmill("inspect", compact, *options)
    assert (result.status, result.stdout) == (status, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert culprit in line


def test_an_export_of_tokens_has_no_heads(tmp_path: Path) -> None:
    succeed("run", NOTEBOOK, "--out", tmp_path, *SMALL[:4], "--export", "tokens")
    result = qkvmill("inspect", tmp_path, "--window", 0, "--head", 0)
    assert result.status == 1
    assert "holds no q, k and v, so --head has no effect" in result.stderr


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def cut_data(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(Path.unlink, "could not be read: No such file or directory"),
     (cut_header, "is not a safetensors file"), (cut_data, "has a damaged safetensors header")],
    ids=["gone", "cut-header", "cut-data"],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["tokens/tokens-00001", "shards/shard-00001-of-00009", "tables", "weights"]
)
def test_a_file_that_cannot_be_read_is_one_line_that_says_what_to_do(
    export: Path, compact: Path, name: str, spoil: Callable[[Path], None], reason: str
) -> None:
    root = export if "/" in name else compact
    path = root / f"{name}.safetensors"
    spoil(path)
    for command in (("inspect", root, "--window", 0), ("report", root)):
        result = qkvmill(*command)
        assert (result.status, result.stdout) == (1, "")
        line = result.stderr.splitlines()[-1]
        assert line.startswith(f"Error: {path} {reason}")
        assert line.count(str(path)) == 1
        assert line.endswith(f"; run qkvmill verify {root}")
        assert line.count("verify") == 1


def test_a_pointer_of_git_lfs_is_no_damage(export: Path) -> None:
    path = export / "shards/shard-00001-of-00009.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    result = qkvmill("inspect", export, "--window", 0)
    assert result.stderr.endswith("fetch it with git lfs pull\n")
