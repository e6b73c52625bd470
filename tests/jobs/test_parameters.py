"""The layer and table stages, and what a run that is given again takes from .work/."""

import json
from pathlib import Path

import pytest
import torch

from exporters.folder import WORK
from jobs import parameters
from jobs.parameters import KEPT, KEPT_RECORD, make_tables
from jobs.progress import Reporter
from kernels.dispatch import choose
from kernels.tables import Tables
from tests.helpers import DATA, SMALL, qkvmill, random_layer, succeed

IDS = torch.tensor([2, 5, 7, 99], dtype=torch.int32)


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(root: Path, ids: torch.Tensor = IDS, weights: str = "aa") -> tuple[Tables, list[str]]:
    notes = Notes()
    backend = choose("cpu", torch.float32)
    tables, record = make_tables(root, random_layer(), weights, ids, backend, notes)
    assert record.bytes == (root / KEPT).stat().st_size
    return tables, notes.notes


def taken(notes: list[str]) -> bool:
    return any("which an unfinished run left" in note for note in notes)


def test_tables_that_were_left_are_taken(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    built, first = make(tmp_path)
    again, second = make(tmp_path)
    assert (taken(first), taken(second)) == (False, True)
    assert torch.equal(built.token_table, again.token_table)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda root: flip(root / KEPT), id="flipped"),
        pytest.param(lambda root: (root / KEPT).unlink(), id="gone"),
        pytest.param(lambda root: (root / KEPT_RECORD).write_text("{"), id="half-a-record"),
        pytest.param(lambda root: (root / KEPT_RECORD).write_text("[]"), id="no-record"),
        pytest.param(lambda root: (root / KEPT_RECORD).unlink(), id="record-gone"),
    ],
)
def test_tables_that_are_not_as_they_were_written_are_built_anew(
    tmp_path: Path, spoil: object
) -> None:
    (tmp_path / WORK).mkdir()
    built, _ = make(tmp_path)
    assert callable(spoil)
    spoil(tmp_path)
    again, notes = make(tmp_path)
    assert not taken(notes)
    assert torch.equal(built.token_table, again.token_table)


def test_tables_of_another_job_are_built_anew(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    make(tmp_path)
    assert not taken(make(tmp_path, ids=IDS[:3])[1])
    assert not taken(make(tmp_path, ids=IDS[:3], weights="bb")[1])
    assert taken(make(tmp_path, ids=IDS[:3], weights="bb")[1])


def test_a_stopped_run_leaves_its_tables_to_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", DATA / "corpus", "--out", out, *SMALL, "--method", "tables")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.write_shards", stop)
        assert qkvmill(*command).status == 130
    assert (out / KEPT).is_file()
    assert not (out / "manifest.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(parameters, "build", None)  # nothing is built again
        result = succeed(*command)
    assert "which an unfinished run left" in result.stderr
    assert not (out / WORK).exists()
    succeed("verify", out)
    succeed("run", DATA / "corpus", "--out", tmp_path / "new", *SMALL, "--method", "tables")
    sums = [(folder / "SHA256SUMS").read_text() for folder in (out, tmp_path / "new")]
    assert sums[0] == sums[1]


def test_the_configuration_is_recorded(compact: Path) -> None:
    manifest = json.loads((compact / "manifest.json").read_text())
    assert manifest["compute"]["configuration"]["build_rows"] == 512
    assert manifest["software"]["torch"] == torch.__version__.partition("+")[0] or (
        manifest["software"]["torch"] == torch.__version__
    )
