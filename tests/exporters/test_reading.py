from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporters.errors import ExportError
from exporters.manifest import read_manifest
from exporters.reading import open_stream, read_window


def test_every_window_is_a_row_of_its_shard(export: Path) -> None:
    manifest = read_manifest(export)
    for entry in manifest.of_kind("windows"):
        shard = load_file(export / entry.name)
        for row in (0, entry.count - 1):
            window = read_window(export, manifest, entry.first + row)
            assert window.tensors.keys() == shard.keys()
            for name, tensor in shard.items():
                assert torch.equal(tensor[row], window.tensors[name])


def test_the_stream_holds_what_the_windows_hold(export: Path) -> None:
    manifest = read_manifest(export)
    window = read_window(export, manifest, 5)
    stream = open_stream(export, manifest)
    assert stream.tokens == manifest.tokens["count"]
    span = window.start, window.start + 16
    assert torch.equal(window.tensors["input_ids"], stream.read(*span))
    assert torch.equal(window.tensors["document_ids"], stream.documents(*span))
    assert torch.equal(window.tensors["target_ids"], stream.read(span[0] + 1, span[1] + 1))


@pytest.mark.parametrize("index", [-1, 10**9])
def test_a_window_that_is_not_there_is_an_error(export: Path, index: int) -> None:
    with pytest.raises(ExportError, match=f"--window {index}"):
        read_window(export, read_manifest(export), index)


def test_a_damaged_shard_is_an_error_with_its_name(export: Path) -> None:
    path = next((export / "shards").glob("shard-00001-of-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match="shard-00001-of"):
        read_window(export, read_manifest(export), 0)
