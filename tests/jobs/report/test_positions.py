from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporters.manifest import read_manifest
from jobs.report import positions as module
from jobs.report.positions import position_tables
from kernels.positions import sinusoidal
from tests.helpers import SMALL, succeed, write_corpus


def exported(folder: Path, *options: object) -> Path:
    corpus = write_corpus(folder / "corpus", a="One fish, two fish, red fish.\n" * 9)
    succeed("run", corpus, "--out", folder / "out", *SMALL, *options)
    return folder / "out"


def test_every_nth_row_and_column_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 6)
    export = exported(tmp_path)
    (table,), _ = position_tables(export, read_manifest(export))
    assert (table.shape, table.row_step, table.column_step) == ((16, 32), 3, 6)
    assert torch.equal(table.values, sinusoidal(16, 32)[::3, ::6])


def test_sinusoidal_ones_are_computed_where_they_are_not_stored(tmp_path: Path) -> None:
    export = exported(tmp_path, "--no-save-weights")
    (table,), _ = position_tables(export, read_manifest(export))
    assert torch.equal(table.values, sinusoidal(16, 32))


@pytest.mark.parametrize("options", [(), ("--no-save-weights", "--artifact", "compact")])
def test_rotary_ones_are_cosine_and_sine(options: tuple[str, ...], tmp_path: Path) -> None:
    export = exported(tmp_path, "--positions", "rope", *options)
    (cos, sin), _ = position_tables(export, read_manifest(export))
    assert (cos.name, sin.name) == ("cos", "sin")
    angles = torch.outer(torch.arange(16.0), 10000.0 ** -(torch.arange(0, 8, 2) / 8))
    torch.testing.assert_close(cos.values, angles.cos())
    torch.testing.assert_close(sin.values, angles.sin())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--positions", "none"), "has no positions"),
        (("--positions", "rope", "--pre-rope"), "(--pre-rope)"),
        (("--positions", "rope", "--no-save-weights"), "(--no-save-weights)"),
    ],
)
def test_what_is_not_there_is_said(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    export = exported(tmp_path, *options)
    tables, why = position_tables(export, read_manifest(export))
    assert tables == []
    assert said in (why or "")


def test_what_is_stored_is_shown_in_any_dtype(tmp_path: Path) -> None:
    export = exported(tmp_path, "--dtype", "bfloat16")
    (table,), _ = position_tables(export, read_manifest(export))
    stored = load_file(export / "weights.safetensors")["position.weight"]
    assert torch.equal(table.values, stored.float())
