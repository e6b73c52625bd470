import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from exporters.errors import ExportError
from exporters.shards import write_tensors
from tests.helpers import ROOT, run_python

TENSORS = {
    "q": torch.arange(24.0).view(2, 3, 4),
    "half": torch.arange(5).to(torch.bfloat16),
    "ids": torch.tensor([[1, -2]], dtype=torch.int32),
    "starts": torch.empty(0, dtype=torch.int64),
}


def test_what_is_written_is_what_plain_safetensors_reads(tmp_path: Path) -> None:
    record = write_tensors(tmp_path, "shards/a.safetensors", TENSORS, ("format", "pt"))
    path = tmp_path / "shards/a.safetensors"
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensor, loaded[name])
        assert tensor.dtype == loaded[name].dtype
    assert record.bytes == path.stat().st_size
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path, "a.safetensors", {"t": base.t(), "s": base[1:]})
    loaded = load_file(tmp_path / "a.safetensors")
    assert torch.equal(base.t(), loaded["t"])
    assert torch.equal(base[1:], loaded["s"])


def test_the_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    records = {write_tensors(tmp_path, f"{i}.st", TENSORS, ("k", "v")).sha256 for i in range(5)}
    assert len(records) == 1


def test_a_file_that_may_not_grow_is_an_error_with_path_and_reason(tmp_path: Path) -> None:
    code = f"""
import resource, torch
from pathlib import Path
from exporters.shards import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_tensors(Path({str(tmp_path)!r}), "a.safetensors", {{"x": torch.zeros(9999)}})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(run_python(code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"ExportError {tmp_path}/a.safetensors could not be written")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_an_error_with_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("in the way")
    with pytest.raises(
        ExportError, match=r"shards/a\.safetensors could not be written: File exists"
    ):
        write_tensors(tmp_path, "shards/a.safetensors", TENSORS)
