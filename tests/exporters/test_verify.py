import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.verify import verify
from tests.helpers import qkvmill


def problems(export: Path) -> list[str]:
    return list(verify(export, lambda _: None).problems)


def test_an_untouched_export_has_no_problems(export: Path) -> None:
    checked: list[int] = []
    findings = verify(export, checked.append)
    assert findings.problems == ()
    assert sum(checked) == findings.bytes


def test_every_flipped_bit_is_found(export: Path) -> None:
    random_bits = random.Random(0)
    for path in sorted(p for p in export.rglob("*") if p.is_file() and p.name != "run.json"):
        data = bytearray(path.read_bytes())
        for _ in range(10):
            bit = random_bits.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            result = qkvmill("verify", export, "--quiet")
            assert result.status == 1, f"bit {bit} of {path.name}"
            assert result.stderr.startswith("Error: ")
            data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
    assert problems(export) == []


SHARD = "shards/shard-00002-of-"


def shard(export: Path) -> Path:
    return next((export / "shards").glob("shard-00002-of-*"))


def swap(export: Path) -> None:
    other = next((export / "shards").glob("shard-00001-of-*"))
    middle = export / "swap"
    shard(export).rename(middle)
    other.rename(shard_name := export / "shards" / middle.name)
    shard_name.rename(export / "shards" / other.name.replace("00001", "00002"))
    middle.rename(other)


def link_outside(export: Path) -> None:
    path = shard(export)
    outside = export.parent / "elsewhere.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(lambda e: shard(e).unlink(), "missing", id="missing-shard"),
        pytest.param(lambda e: os.truncate(shard(e), 999), "has 999 bytes, not", id="truncated"),
        pytest.param(lambda e: os.truncate(shard(e), 0), "has 0 bytes, not", id="emptied"),
        pytest.param(swap, "do not match", id="swapped"),
        pytest.param(link_outside, "missing", id="link-outside"),
        pytest.param(lambda e: (e / "SHA256SUMS").unlink(), "SHA256SUMS", id="no-hashes"),
        pytest.param(lambda e: (e / "SHA256SUMS").write_text("x"), "line 1", id="odd-hashes"),
        pytest.param(lambda e: (e / "shards/a.txt").write_text(""), "extra", id="extra"),
        pytest.param(lambda e: (e / "weights.safetensors").unlink(), "weights", id="no-weights"),
    ],
)
def test_damage_is_found_and_named(
    export: Path, damage: Callable[[Path], None], expected: str
) -> None:
    damage(export)
    found = problems(export)
    assert any(expected in problem for problem in found), found
    assert qkvmill("verify", export).status == 1


def test_a_manifest_that_leaves_a_gap_is_found(export: Path) -> None:
    path = export / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    shards = [entry for entry in document["files"] if entry["kind"] == "windows"]
    document["files"].remove(shards[1])
    path.write_text(json.dumps(document))
    found = problems(export)
    assert any(f"begins at windows {shards[2]['first']}" in problem for problem in found), found


def test_a_manifest_with_another_shape_is_found(export: Path) -> None:
    path = export / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    shards = [entry for entry in document["files"] if entry["kind"] == "windows"]
    shards[1]["tensors"]["q"]["shape"][1] += 1
    path.write_text(json.dumps(document))
    assert any("q is float32" in problem for problem in problems(export))


def test_all_problems_are_in_the_json(export: Path) -> None:
    shard(export).unlink()
    result = qkvmill("verify", export, "--json")
    assert result.status == 1
    assert any("missing" in problem for problem in result.json["problems"])
