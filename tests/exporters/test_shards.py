import hashlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from exporters.errors import ExportError
from exporters.files import FileRecord
from exporters.shards import AHEAD, DTYPE_NAMES, record_of, write_pieces, write_tensors
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


NAMES = ["q", "k", "é", 'a "b"', "x/y\\z", "Z", "tab\t"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    drawn=st.dictionaries(
        st.sampled_from(NAMES),
        st.tuples(st.sampled_from(list(DTYPE_NAMES)), st.lists(st.integers(0, 4), max_size=3)),
    ),
    metadata=st.sampled_from([None, ("format", "pt"), ("qkvmill", '{"é": "\\n", "eps": 1e-05}')]),
)
def test_the_bytes_are_those_of_the_safetensors_library(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: dict[str, tuple[torch.dtype, list[int]]],
    metadata: tuple[str, str] | None,
) -> None:
    folder = tmp_path_factory.mktemp("same")
    tensors = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in drawn.items()}
    record = write_tensors(folder, "ours", tensors, metadata)
    save_file(tensors, folder / "theirs", metadata=dict([metadata]) if metadata else None)
    ours, theirs = ((folder / name).read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs
    expected = FileRecord("ours", len(theirs), hashlib.sha256(theirs).hexdigest())
    assert record == expected == record_of("ours", tensors, metadata)


def test_pieces_are_hashed_before_they_are_changed(tmp_path: Path) -> None:
    values = torch.randn(40, 1 << 15)
    buffers = [torch.empty(1 << 15) for _ in range(AHEAD + 1)]

    def pieces() -> Iterator[torch.Tensor]:
        for turn, row in enumerate(values):
            buffer = buffers[turn % len(buffers)]
            buffer.copy_(row)
            yield buffer

    declared = {"x": (torch.float32, (40, 1 << 15))}
    record = write_pieces(tmp_path, "pieces", declared, pieces())
    assert record == write_tensors(tmp_path, "pieces", {"x": values})
    assert record.sha256 == hashlib.sha256((tmp_path / "pieces").read_bytes()).hexdigest()


@pytest.mark.parametrize("count", [2, 4])
def test_pieces_of_another_size_are_refused(tmp_path: Path, count: int) -> None:
    declared = {"x": (torch.int32, (3, 5))}
    with pytest.raises(ValueError, match="not what was declared"):
        write_pieces(tmp_path, "x", declared, [torch.zeros(5, dtype=torch.int32)] * count)
    assert os.listdir(tmp_path) == []


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
