"""The layer and table stages, and what a run that is given again takes of them."""

import json
from pathlib import Path

import pytest
import torch

from jobs import parameters
from jobs.parameters import BESIDE
from tests.helpers import DATA, SMALL, qkvmill, succeed


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_a_stopped_run_leaves_its_layer_and_tables_to_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifact: str
) -> None:
    out = tmp_path / "out"
    job = (*SMALL, "--method", "tables", "--artifact", artifact)
    command = ("run", DATA / "corpus", "--out", out, *job)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.manifest_of", stop)
        assert qkvmill(*command).status == 130
    assert (out / (BESIDE if artifact == "full" else "tables.safetensors")).is_file()
    assert not (out / "manifest.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(parameters, "build", None)  # nothing is built again
        patched.setattr(parameters, "save_layer", None)
        result = succeed(*command)
    assert "holds an unfinished export: going on" in result.stderr
    assert not (out / ".work").exists()
    succeed("verify", out)
    succeed("run", DATA / "corpus", "--out", tmp_path / "new", *job)
    sums = [(folder / "SHA256SUMS").read_text() for folder in (out, tmp_path / "new")]
    assert sums[0] == sums[1]


def test_the_configuration_is_recorded(compact: Path) -> None:
    manifest = json.loads((compact / "manifest.json").read_text())
    assert manifest["compute"]["configuration"]["build_rows"] == 512
    assert manifest["software"]["torch"] == torch.__version__.partition("+")[0] or (
        manifest["software"]["torch"] == torch.__version__
    )
