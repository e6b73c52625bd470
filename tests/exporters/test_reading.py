import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from exporters import reading
from exporters.errors import ExportError
from exporters.manifest import read_manifest
from exporters.reading import Export, open_export, open_stream
from kernels import combine_triton
from kernels.dispatch import Backend, choose
from kernels.errors import DeviceError, QkvmillError
from tests.helpers import DEVICE


@pytest.fixture
def both(export: Path, compact: Path) -> tuple[Export, Export]:
    return open_export(export), open_export(str(compact))


def test_every_window_is_a_row_of_its_shard(export: Path) -> None:
    windows = open_export(export)
    for entry in windows.manifest.of_kind("windows"):
        shard = load_file(export / entry.name)
        for row in (0, entry.count - 1):
            window = windows[entry.first + row]
            assert window.keys() == shard.keys()
            for name, tensor in shard.items():
                assert torch.equal(tensor[row], window[name])


def test_full_and_compact_are_read_alike(both: tuple[Export, Export]) -> None:
    full, compact = both
    assert len(full) == len(compact) == full.manifest.windows["count"]
    for index in (0, 3, len(full) - 1, -1, -len(full)):
        one, other = full[index], compact[index]
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_batches_are_the_windows_in_order(both: tuple[Export, Export], size: int) -> None:
    for windows in both:
        batches = list(windows.batches(size))
        assert [len(batch["q"]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        assert len(joined["q"]) == len(windows)
        for index in (0, len(windows) // 2, len(windows) - 1):
            for name, tensor in windows[index].items():
                assert torch.equal(tensor, joined[name][index])


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), DEVICE], ids=str)
def test_batches_are_on_the_device_that_was_asked_for(
    both: tuple[Export, Export], device: torch.device | str
) -> None:
    for windows in both:
        for tensor in next(windows.batches(3, device=device)).values():
            assert tensor.device.type == torch.device(device).type


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")
@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_kernels_of_a_gpu_give_the_windows_of_a_full_export(
    both: tuple[Export, Export], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []

    def on_gpu(*arguments: Any, **named: Any) -> None:
        launched.append(1)
        combine_triton.combine(*arguments, **named)

    def chosen(device: str, dtype: torch.dtype) -> Backend:
        return replace(choose("cpu", dtype), combine=on_gpu)

    if DEVICE.type == "cpu":  # whose interpreter stands in for it
        monkeypatch.setattr(reading, "choose", chosen)
    full, compact = both
    found = list(compact.batches(size, device=DEVICE))
    for one, other in zip(full.batches(size), found, strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name].cpu())
    assert launched or DEVICE.type == "cuda"


def test_a_device_that_is_not_there_is_an_error(both: tuple[Export, Export]) -> None:
    for windows in both:
        with pytest.raises(DeviceError, match="no CUDA device"):
            next(windows.batches(3, device="cuda"))
        with pytest.raises(DeviceError, match="'mps' is not"):
            next(windows.batches(3, device="mps"))


def test_workers_that_are_spawned_read_what_this_process_reads(
    both: tuple[Export, Export],
) -> None:
    for windows in both:
        windows[0]  # opens files, which must not travel
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            windows,  # type: ignore[arg-type]
            batch_size=4,
            num_workers=2,
            multiprocessing_context="spawn",
        )
        for found, expected in zip(loader, windows.batches(4), strict=True):
            assert found.keys() == expected.keys()
            for name in expected:
                assert torch.equal(found[name], expected[name])


def test_a_pickle_is_small(both: tuple[Export, Export]) -> None:
    for windows in both:
        before = len(pickle.dumps(windows))
        list(windows.batches(8))
        assert len(pickle.dumps(windows)) == before < 20_000


@pytest.mark.parametrize("index", [10**9, -(10**9)])
def test_a_window_that_is_not_there_is_an_index_error(
    both: tuple[Export, Export], index: int
) -> None:
    for windows in both:
        with pytest.raises(IndexError, match=f"windows 0 to .* none is {index}"):
            windows[index]
        with pytest.raises(IndexError):
            windows[len(windows)]


def test_a_batch_of_none_is_an_error(export: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 0"):
        next(open_export(export).batches(0))


def test_it_can_be_iterated(both: tuple[Export, Export]) -> None:
    for windows in both:
        starts = [int(window["window_start"]) for window in windows]  # type: ignore[attr-defined]
        assert starts == [16 * row for row in range(len(windows))]


def test_the_stream_holds_what_the_windows_hold(export: Path) -> None:
    manifest = read_manifest(export)
    window = open_export(export)[5]
    stream = open_stream(export, manifest)
    assert stream.tokens == manifest.tokens["count"]
    span = int(window["window_start"]), int(window["window_start"]) + 16
    assert torch.equal(window["input_ids"], stream.read(*span))
    assert torch.equal(window["document_ids"], stream.documents(*span))
    assert torch.equal(window["target_ids"], stream.read(span[0] + 1, span[1] + 1))


def test_a_damaged_shard_is_an_error_with_its_name(export: Path) -> None:
    path = next((export / "shards").glob("shard-00001-of-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match="shard-00001-of"):
        open_export(export)[0]


@pytest.mark.parametrize("name", ["tables.safetensors", "weights.safetensors"])
def test_a_compact_export_that_lacks_a_file_is_an_error_with_its_name(
    compact: Path, name: str
) -> None:
    (compact / name).unlink()
    with pytest.raises(QkvmillError, match=name):
        open_export(compact)[0]


def test_an_export_says_what_it_is(export: Path, compact: Path) -> None:
    windows = open_export(export)
    assert repr(windows).startswith(f"<full export {export}: {len(windows)} windows of window_")
    assert repr(windows).endswith("x, y, q, k, v>")
    assert repr(open_export(compact)).startswith(f"<compact export {compact}: ")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no finished export"):
        open_export(tmp_path)
