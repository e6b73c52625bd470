from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.consistency import contradictions
from exporters.manifest import read_manifest
from tests.helpers import qkvmill, recommit, small_export

Document = dict[str, Any]


def files(document: Document, kind: str) -> list[Document]:
    return [entry for entry in document["files"] if entry["kind"] == kind]


def twice(document: Document) -> None:
    document["files"].append(document["files"][0])


def set_in(value: Document, key: str, new: object) -> None:
    value[key] = new


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(twice, "manifest.json: a file stands in it twice", id="twice"),
        pytest.param(
            lambda d: set_in(files(d, "windows")[1], "first", 5),
            "begins at windows 5, not 4",
            id="gap",
        ),
        pytest.param(
            lambda d: set_in(files(d, "windows")[1], "first", 3),
            "begins at windows 3, not 4",
            id="overlap",
        ),
        pytest.param(
            lambda d: d["files"].remove(files(d, "windows")[-1]),
            "its files hold 32 windows, but it says 34",
            id="last-shard",
        ),
        pytest.param(
            lambda d: set_in(files(d, "tokens")[0], "first", 1),
            "begins at tokens 1, not 0",
            id="tokens-gap",
        ),
        pytest.param(
            lambda d: set_in(d["tokens"], "count", 99), "tokens, but it says 99", id="tokens-count"
        ),
        pytest.param(
            lambda d: set_in(d["windows"], "stride", 999), "999 apart, do not lie in", id="stride"
        ),
        pytest.param(
            lambda d: set_in(files(d, "windows")[0], "kind", "other"),
            "is of the kind 'other', not tokens, windows",
            id="kind",
        ),
        pytest.param(
            lambda d: set_in(d["job"], "dtype", "bfloat16"),
            "declares q as float32 [4, 4, 16, 8], but its options and counts give bfloat16",
            id="dtype",
        ),
        pytest.param(
            lambda d: set_in(d["job"], "layout", "bthd"),
            "but its options and counts give float32 [4, 16, 4, 8]",
            id="layout",
        ),
        pytest.param(
            lambda d: files(d, "windows")[0]["tensors"].pop("q"),
            "declares q as nothing",
            id="tensor-left-out",
        ),
        pytest.param(
            lambda d: set_in(d["windows"], "boundaries", "split"),
            "windows.boundaries is 'split', but job.boundaries is another",
            id="boundaries",
        ),
        pytest.param(
            lambda d: set_in(d["job"], "tail", "pad"),
            "windows.tail is 'drop', but job.tail is another",
            id="tail",
        ),
        pytest.param(
            lambda d: set_in(files(d, "windows")[0], "kind", "starts"),
            "its files hold 4 starts, but it says 0",
            id="starts",
        ),
        pytest.param(
            lambda d: set_in(d["layer"], "weights_sha256", "0" * 64),
            "weights.safetensors: is not the layer",
            id="weights",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_found(
    export: Path, change: Callable[[Document], None], expected: str
) -> None:
    recommit(export, change)
    result = qkvmill("verify", export, "--quiet")
    assert result.status == 1
    assert expected in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--artifact", "compact", "--sampling", "random", "--batches", 3),
        ("--sampling", "random", "--batches", 3),
        ("--stride", 5, "--layout", "bthd", "--dtype", "bfloat16"),
        ("--stride", 40, "--no-save-weights"),
        ("--boundaries", "split", "--tail", "pad"),
        ("--boundaries", "split", "--artifact", "compact"),
        ("--tail", "pad"),
    ],
    ids=lambda options: "-".join(str(option).strip("-") for option in options),
)
def test_what_a_run_writes_contradicts_itself_nowhere(tmp_path: Path, options: Any) -> None:
    assert contradictions(read_manifest(small_export(tmp_path, *options))) == []


def test_a_compact_export_without_tables_is_found(compact: Path) -> None:
    recommit(compact, lambda d: d["files"].remove(files(d, "tables")[0]))
    assert "a compact export has one file of tables" in qkvmill("verify", compact).stderr
