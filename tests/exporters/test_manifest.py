import hashlib
import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters.errors import ExportError
from exporters.manifest import read_manifest
from tests.helpers import qkvmill, recommit, succeed


def test_plain_sha256sum_checks_an_export(export: Path) -> None:
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=export, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {line.partition(":")[0] for line in done.stdout.splitlines()}
    files = {p.relative_to(export).as_posix() for p in export.rglob("*") if p.is_file()}
    assert names == files - {"SHA256SUMS", "run.json"}


def test_the_manifest_names_every_file_and_what_it_covers(export: Path) -> None:
    manifest = read_manifest(export)
    for entry in manifest.files:
        data = (export / entry.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
    covered = [(entry.first, entry.count) for entry in manifest.of_kind("windows")]
    assert len(covered) > 2
    assert covered[0][0] == 0
    assert sum(count for _, count in covered) == manifest.windows["count"]


def test_shapes_stand_on_one_line_and_names_are_left_alone(export: Path) -> None:
    text = (export / "manifest.json").read_text("utf-8")
    assert re.search(r'"shape": \[4,16,32\]', text)
    assert json.loads(text)["corpus"]["files"][0]["name"] == "a.txt"


def test_nothing_tells_where_the_corpus_or_the_export_lay(export: Path) -> None:
    assert str(export.parent.parent) not in (export / "manifest.json").read_text("utf-8")


def broken(manifest: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    *path, last = place.split(".")
    target: Any = manifest
    for key in path:
        target = target[int(key) if key.isdigit() else key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return manifest


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("format", "other", "not the manifest"),
        ("format_version", 99, "format version 99, but this qkvmill reads versions up to"),
        ("format_version", 99, "install a newer qkvmill"),
        ("format_version", 0, "no release wrote it"),
        ("format_version", True, "no release wrote it"),
        ("format_version", "2", "no release wrote it"),
        ("format_version", None, "format version None"),
        ("files", None, "files"),
        ("files.0.name", "../../etc/passwd", "not one of an export"),
        ("files.0.name", "/etc/passwd", "not one of an export"),
        ("files.0.name", "tokens/x.bin", "not one of an export"),
        ("files.0.name", 7, "damaged"),
        ("files.0.bytes", -1, "damaged"),
        ("files.0.count", "many", "damaged"),
        ("files.0.tensors", {"q": {}}, "dtype"),
        ("files.0.sha256", None, "sha256"),
        ("windows", [], "windows"),
        ("windows.count", "4", "windows.count"),
        ("layer", 3, "layer"),
    ],
)
def test_a_damaged_manifest_is_an_error_with_the_reason(
    export: Path, place: str, value: Any, reason: str
) -> None:
    path = export / "manifest.json"
    document = broken(json.loads(path.read_text("utf-8")), place, value)
    path.write_text(json.dumps(document))
    with pytest.raises(ExportError) as error:
        read_manifest(export)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_keys_that_a_later_release_may_add_are_left_alone(export: Path) -> None:
    read = read_manifest(export)

    def add(document: dict[str, Any]) -> None:
        sections = [value for value in document.values() if isinstance(value, dict)]
        for place in (document, *sections, *document["files"], *document["corpus"]["files"]):
            place["of a later release"] = {"anything": [1]}

    recommit(export, add)
    assert read_manifest(export).files == read.files
    for command in (["inspect"], ["inspect", "--window", 0], ["verify", "--sample", 1]):
        succeed(command[0], export, *command[1:])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"[" * 99999])
def test_a_manifest_that_is_no_json_object_is_an_error(export: Path, content: bytes) -> None:
    (export / "manifest.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"manifest\.json"):
        read_manifest(export)


def test_an_unfinished_export_is_said_to_be_one(export: Path) -> None:
    (export / "manifest.json").unlink()
    with pytest.raises(ExportError, match="no finished export"):
        read_manifest(export)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def test_a_garbled_manifest_is_one_line_whatever_is_garbled(export: Path) -> None:
    path = export / "manifest.json"
    original = path.read_text("utf-8")
    every = list(places(json.loads(original)))
    chance = random.Random(0)
    for _ in range(150):
        document = json.loads(original)
        *parents, last = chance.choice(every)
        target = document
        for key in parents:
            target = target[key]
        target[last] = chance.choice([None, -1, 2**70, 1e308, "x", [], {}, [[]], True])
        path.write_text(json.dumps(document))
        for command in (["inspect"], ["verify"], ["inspect", "--window", "0"]):
            result = qkvmill(command[0], export, *command[1:])
            assert result.status in (0, 1, 2)
            assert command[0] != "verify" or result.status == 1
            assert result.status == 0 or "Error: " in result.stderr.splitlines()[-1]
