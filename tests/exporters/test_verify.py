import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.errors import ExportError
from exporters.verify import verify
from tests.helpers import qkvmill, recommit, small_export, succeed


def problems(export: Path) -> list[str]:
    try:
        return list(verify(export, lambda _: None).problems)
    except ExportError as error:
        return [str(error)]


def files_of(export: Path) -> list[Path]:
    """Every file that verify answers for."""
    return sorted(p for p in export.rglob("*") if p.is_file() and p.name != "run.json")


@pytest.fixture(params=["full", "compact"], scope="module")
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full and a compact export that are quickly read, to damage and to mend."""
    folder = tmp_path_factory.mktemp(request.param)
    return small_export(folder, "--d-model", 8, "--heads", 2, "--artifact", request.param)


def test_an_untouched_export_has_no_problems(export: Path, compact: Path) -> None:
    for root in (export, compact):
        checked: list[int] = []
        findings = verify(root, checked.append)
        assert findings.problems == ()
        assert sum(checked) == findings.bytes


def test_every_flipped_bit_is_found(narrow: Path) -> None:
    chance, files = random.Random(0), files_of(narrow)
    flips = 1000 if (narrow / "shards").exists() else 200
    found = 0
    for number in range(flips):
        path = files[number % len(files)]
        with path.open("r+b", buffering=0) as file:
            bit = chance.randrange(8 * path.stat().st_size)
            file.seek(bit // 8)
            byte = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte[0] ^ 1 << bit % 8]))
            named = any(path.name in problem for problem in problems(narrow))
            file.seek(bit // 8)
            file.write(byte)
        found += named
        assert named, f"bit {bit} of {path}"
    assert flips == found
    assert problems(narrow) == []


def test_every_length_that_is_wrong_is_found(narrow: Path) -> None:
    chance, files = random.Random(1), files_of(narrow)
    found = 0
    for number in range(200):
        path = files[number % len(files)]
        data = path.read_bytes()
        more = chance.choice([1, 8, 4096])
        path.write_bytes(data[: chance.randrange(len(data))] if number % 2 else data + bytes(more))
        named = any(path.name in problem for problem in problems(narrow))
        path.write_bytes(data)
        found += named
        assert named, f"{path} of {len(data)} bytes, {'cut' if number % 2 else more}"
    assert found == 200
    assert problems(narrow) == []


MAKE: tuple[Callable[[Path], None], ...] = (
    Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/"),
)  # fmt: skip


def misplace(export: Path, number: int, chance: random.Random) -> set[str]:
    """Swap two files, remove one, rename one or add something; returns what is to be named."""
    one, other = chance.sample(files_of(export), 2)
    if number % 4 == 0:
        one.rename(middle := export / "middle")
        other.rename(one)
        middle.rename(other)
    elif number % 4 == 1:
        one.unlink()
    elif number % 4 == 2:
        one.rename(other.with_name(f"{one.name}.part"))
    else:
        one = other.with_name(chance.choice([".hidden", "z.safetensors", "\udcff"]))
        chance.choice(MAKE)(one)
    return {one.name, other.name} if number % 4 == 0 else {one.name}


def test_everything_that_is_swapped_missing_or_extra_is_found(narrow: Path) -> None:
    chance = random.Random(2)
    copy = narrow.parent / "copy"
    found = 0
    for number in range(200):
        # Names are changed, never bytes, so the copy may share them.
        shutil.copytree(narrow, copy, copy_function=os.link)
        names = misplace(copy, number, chance)
        listed = problems(copy)
        shutil.rmtree(copy)
        named = any(name in problem for problem in listed for name in names)
        found += named
        assert named, f"{number}: {names}"
    assert found == 200


def test_every_flipped_bit_of_a_manifest_is_one_line_of_the_command(export: Path) -> None:
    path, chance = export / "manifest.json", random.Random(3)
    data = path.read_bytes()
    for _ in range(50):
        bit = chance.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        result = qkvmill("verify", export, "--quiet")
        assert result.status == 1, f"bit {bit}"
        assert result.stderr.startswith("Error: ")
        assert "manifest.json" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def shard(export: Path) -> Path:
    return next((export / "shards").glob("shard-00002-of-*"))


def swap(export: Path) -> None:
    other = next((export / "shards").glob("shard-00001-of-*"))
    shard(export).rename(middle := export / "swap")
    other.rename(other.with_name(other.name.replace("00001", "00002")))
    middle.rename(other)


def link_outside(path: Path) -> None:
    outside = path.parents[1] / f"elsewhere-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def instead(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def sums(export: Path, change: Callable[[str], str]) -> None:
    path = export / "SHA256SUMS"
    path.write_text(change(path.read_text()))


def upper_case(text: str) -> str:
    return text[:64].upper() + text[64:]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(lambda e: shard(e).unlink(), r"00002-of-.*: missing", id="missing-shard"),
        pytest.param(lambda e: os.truncate(shard(e), 999), "has 999 bytes, not", id="truncated"),
        pytest.param(lambda e: os.truncate(shard(e), 0), "has 0 bytes, not", id="emptied"),
        pytest.param(swap, "do not match", id="swapped"),
        pytest.param(lambda e: link_outside(shard(e)), "is a link, not a file", id="link-outside"),
        pytest.param(
            lambda e: link_outside(e / "shards"), "shards: is a link, not a f", id="folder-link"
        ),
        pytest.param(
            lambda e: instead(shard(e), os.mkfifo), "is a special file, not a file", id="fifo"
        ),
        pytest.param(
            lambda e: instead(shard(e), os.mkdir), "is a folder, not a file", id="folder"
        ),
        pytest.param(
            lambda e: instead(e / "manifest.json", os.mkfifo), "not a regular file", id="fifo-json"
        ),
        pytest.param(
            lambda e: link_outside(e / "manifest.json"), "json is a link", id="linked-manifest"
        ),
        pytest.param(
            lambda e: instead(e / "SHA256SUMS", os.mkfifo), "SUMS: is a special", id="sums-fifo"
        ),
        pytest.param(
            lambda e: instead(e / "run.json", os.mkfifo), "run.json: is a special", id="run-fifo"
        ),
        pytest.param(lambda e: (e / "SHA256SUMS").unlink(), "SHA256SUMS: missing", id="no-sums"),
        pytest.param(lambda e: sums(e, lambda _: "x"), "SHA256SUMS: lacks", id="odd-sums"),
        pytest.param(lambda e: sums(e, upper_case), "SHA256SUMS", id="sums-in-upper-case"),
        pytest.param(
            lambda e: sums(e, lambda text: text + "\n"), "SHA256SUMS: holds more", id="sums-longer"
        ),
        pytest.param(
            lambda e: sums(e, lambda text: "".join(sorted(text.splitlines(True), reverse=True))),
            "SHA256SUMS: holds more than a line for each file, or in another order",
            id="sums-in-another-order",
        ),
        pytest.param(
            lambda e: sums(e, lambda text: text[:-1]), "SHA256SUMS: lacks", id="sums-without-end"
        ),
        pytest.param(lambda e: (e / "shards/a.txt").touch(), "a.txt: extra, a file", id="extra"),
        pytest.param(
            lambda e: (e / "shards/shard-00009-of-00009.safetensors.part").touch(),
            r"\.part: extra, a file",
            id="part",
        ),
        pytest.param(lambda e: (e / "old").mkdir(), "old: extra, a folder", id="empty-folder"),
        pytest.param(lambda e: os.mkfifo(e / "a"), "a: extra, a special file", id="extra-fifo"),
        pytest.param(
            lambda e: (e / "a").symlink_to("/"), "a: extra, a link", id="link-to-a-folder"
        ),
        pytest.param(lambda e: (e / ".work").touch(), r"\.work: extra, a file", id="odd-work"),
        pytest.param(lambda e: (e / "weights.safetensors").unlink(), "weights", id="no-weights"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(
    export: Path, damage: Callable[[Path], None], expected: str
) -> None:
    damage(export)
    result = qkvmill("verify", export, "--quiet")
    assert result.status == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(expected, result.stderr), result.stderr


def test_what_a_commit_that_was_cut_short_leaves_is_no_damage(export: Path) -> None:
    (export / ".work/tables").mkdir(parents=True)
    (export / ".work/lock").touch()
    succeed("verify", export)


def test_run_json_may_be_gone_or_other(export: Path) -> None:
    (export / "run.json").write_text("anything")
    succeed("verify", export)
    (export / "run.json").unlink()
    succeed("verify", export)


def test_a_broken_header_is_found_though_its_hash_is_right(export: Path) -> None:
    path = shard(export)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].replace(b'"k":', b'"q":')
    path.write_bytes(data[:8] + header + data[8 + length :])
    recommit(export)
    (problem,) = problems(export)
    assert path.name in problem
    assert "a name stands in it twice" in problem


def test_a_tensor_that_the_manifest_does_not_know_is_found(export: Path) -> None:
    path = shard(export)
    path.write_bytes(path.read_bytes().replace(b'"k":', b'"l":'))
    recommit(export)
    found = problems(export)
    assert any("lacks the tensor k" in problem for problem in found)
    assert any("holds the tensor l" in problem for problem in found)


def test_a_manifest_with_another_shape_is_found(export: Path) -> None:
    def widen(document: dict[str, Any]) -> None:
        shards = [entry for entry in document["files"] if entry["kind"] == "windows"]
        shards[1]["tensors"]["q"]["shape"][1] += 1

    recommit(export, widen)
    assert any("q is float32" in problem for problem in problems(export))


def test_all_problems_are_in_the_json(export: Path) -> None:
    shard(export).unlink()
    result = qkvmill("verify", export, "--json")
    assert result.status == 1
    assert any("missing" in problem for problem in result.json["problems"])
