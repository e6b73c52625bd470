import os
from pathlib import Path

import pytest

from exporters.errors import ExportError
from exporters.state import State, check_claim, state_of


def test_the_manifest_decides_what_stands_there(tmp_path: Path, export: Path) -> None:
    assert state_of(tmp_path / "none") is State.NOTHING
    (tmp_path / "empty").mkdir()
    assert state_of(tmp_path / "empty") is State.NOTHING
    (tmp_path / "begun/.work").mkdir(parents=True)
    assert state_of(tmp_path / "begun") is State.UNFINISHED
    assert state_of(export) is State.FINISHED
    (export / ".work").mkdir()
    assert state_of(export) is State.FINISHED
    (export / "manifest.json").unlink()
    assert state_of(export) is State.UNFINISHED


def test_only_a_finished_export_needs_overwrite(tmp_path: Path, export: Path) -> None:
    with pytest.raises(ExportError, match=r"holds a finished export; .*or --overwrite"):
        check_claim(export, overwrite=False)
    assert check_claim(export, overwrite=True) is State.FINISHED
    (tmp_path / "begun/.work").mkdir(parents=True)
    assert check_claim(tmp_path / "begun", overwrite=False) is State.UNFINISHED


def test_a_fifo_or_a_circle_of_links_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ExportError, match="holds something else"):
        check_claim(tmp_path, overwrite=True)


def test_what_may_be_the_remains_of_an_export_is_called_so_and_left_alone(export: Path) -> None:
    (export / "manifest.json").rename(export / "manifest.json.part")
    for _ in range(2):
        with pytest.raises(ExportError, match=r"may be the remains .* gone \(SHA256SUMS, .*delete"):
            check_claim(export, overwrite=True)
        (export / "manifest.json.part").unlink(missing_ok=True)
    (export / "notes.md").touch()
    with pytest.raises(ExportError, match="holds something else"):
        check_claim(export, overwrite=True)
