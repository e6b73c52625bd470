import os
import shutil
from pathlib import Path

import pytest

from exporters.errors import ExportError
from exporters.folder import check_claim, check_space, claim, readable, release


def test_a_new_folder_is_claimed_and_released(tmp_path: Path) -> None:
    root = tmp_path / "deep/out"
    lock = claim(root, overwrite=False)
    assert os.listdir(root) == [".work"]
    release(root, lock)
    assert os.listdir(root) == []


def test_a_folder_that_another_job_writes_is_refused_until_it_ends(tmp_path: Path) -> None:
    lock = claim(tmp_path, overwrite=False)
    for overwrite in (True, False):
        with pytest.raises(ExportError, match="is being written by another job"):
            claim(tmp_path, overwrite=overwrite)
    release(tmp_path, lock)
    claim(tmp_path, overwrite=False)


def test_an_unfinished_export_is_cleared(tmp_path: Path) -> None:
    claim(tmp_path, overwrite=False)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/shard-00001-of-00009.safetensors").write_bytes(b"old")
    assert check_claim(tmp_path, overwrite=False) == "an unfinished export"
    claim(tmp_path, overwrite=False)
    assert os.listdir(tmp_path) == [".work"]


def test_a_finished_export_needs_overwrite(export: Path) -> None:
    with pytest.raises(ExportError, match="--overwrite"):
        claim(export, overwrite=False)
    assert check_claim(export, overwrite=True) == "a finished export"
    claim(export, overwrite=True)
    assert os.listdir(export) == [".work"]


def test_overwriting_leaves_files_that_are_not_ours(export: Path) -> None:
    (export / "notes.md").write_text("mine")
    claim(export, overwrite=True)
    assert sorted(os.listdir(export)) == [".work", "notes.md"]


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "shards/a.safetensors", "manifest.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_holds_something_else_is_refused_and_kept(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ExportError, match="holds something else"):
        claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "{}"


def test_a_file_or_a_dead_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ExportError, match=f"--out {tmp_path / name} is a"):
            claim(tmp_path / name, overwrite=True)


def test_a_link_in_place_of_our_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    root = tmp_path / "out"
    claim(root, overwrite=False)
    (root / "shards").symlink_to(outside)
    claim(root, overwrite=False)
    assert (outside / "keep.txt").exists()


def test_space_is_checked_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = shutil.disk_usage(tmp_path)

    def usage(place: Path) -> object:
        asked.append(place)
        return real._replace(free=999)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not/yet/there", 999)
    with pytest.raises(ExportError, match=r"needs 1\.0 kB.* has 999 bytes free"):
        check_space(tmp_path / "not/yet/there", 1000)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_949, "999.9 kB"),
     (999_950, "1.0 MB"), (512_000_000, "512.0 MB"), (3 * 10**15, "3.0 PB")],
)  # fmt: skip
def test_sizes_are_readable(count: int, expected: str) -> None:
    assert expected == readable(count)
