"""What verify finds of windows whose files are whole, but lie elsewhere than documents put them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporters import coverage
from exporters.coverage import find
from exporters.manifest import read_manifest
from exporters.sample import recompute
from exporters.spans import whole_stream
from exporters.verify import verify
from tests.helpers import recommit, small_export

SPLIT = ("--boundaries", "split", "--tail", "pad", "--d-model", 8, "--heads", 2)
STARTS = "windows.safetensors"


@pytest.fixture(scope="module", params=["full", "compact"])
def _made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = ("--artifact", request.param, "--shard-size", 20_000)
    return small_export(tmp_path_factory.mktemp(request.param), *SPLIT, *size)


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    """A padded export of three documents, full or compact, to change at will."""
    return Path(shutil.copytree(_made, tmp_path / "made"))


def problems(export: Path) -> list[str]:
    return list(verify(export, lambda _: None).problems)


def rewrite(export: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file, and make every hash of the export right again."""
    tensors = {key: tensor.clone() for key, tensor in load_file(export / name).items()}
    change(tensors)
    save_file(tensors, export / name, {"format": "pt"})
    recommit(export)


@pytest.mark.parametrize("size", [1, 1 << 22], ids=["a-window-at-once", "all-at-once"])
def test_a_start_that_is_another_is_found(
    made: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "MASK_PLACES", size)
    assert problems(made) == []
    rewrite(made, STARTS, lambda tensors: tensors["window_start"][-1].add_(1))
    (problem,) = problems(made)
    assert problem.startswith(f"{STARTS}: window_start of windows ")


def test_real_pairs_that_are_others_are_found(made: Path) -> None:
    rewrite(made, STARTS, lambda tensors: tensors["window_pairs"][-1].sub_(1))
    (problem,) = problems(made)
    assert problem.startswith(f"{STARTS}: window_pairs of windows ")


@pytest.mark.parametrize("name", ["window_start", "mask"])
def test_a_shard_that_is_another_is_found(tmp_path: Path, name: str) -> None:
    export = small_export(tmp_path, *SPLIT, "--shard-size", 20_000)
    shards = sorted((export / "shards").iterdir())
    assert len(shards) > 2
    shard = f"shards/{shards[1].name}"

    def change(tensors: dict[str, Tensor]) -> None:
        last = tensors[name][-1]
        last.copy_(last.logical_not() if name == "mask" else last - 1)

    rewrite(export, shard, change)
    (problem,) = problems(export)
    assert problem.startswith(f"{shard}: {name} of windows ")
    sampled = recompute(export, tuple(range(30)), lambda _: None)
    (found,) = [said for said in sampled if name in said]
    assert found.startswith(f"{shard}: window ")


def test_a_mask_of_windows_that_run_over_documents_is_checked(tmp_path: Path) -> None:
    export = small_export(tmp_path, "--tail", "pad", "--stride", 10, *SPLIT[4:])
    assert problems(export) == []
    last = f"shards/{sorted((export / 'shards').iterdir())[-1].name}"
    rewrite(export, last, lambda tensors: tensors["mask"].fill_(True))
    (problem,) = problems(export)
    assert problem.startswith(f"{last}: mask of windows ")


@pytest.mark.parametrize(
    "name", ["padded_windows", "padded_places", "dropped_tokens", "short_documents"]
)
def test_a_count_that_is_another_is_found(made: Path, name: str) -> None:
    recommit(made, lambda document: document["windows"].update({name: 999}))
    (problem,) = problems(made)
    assert problem.startswith(f"manifest.json: windows.{name} is 999, but the documents give ")


def test_documents_that_begin_elsewhere_are_found(made: Path) -> None:
    rewrite(made, "tokens/tokens-00001.safetensors", lambda t: t["document_starts"][1].sub_(1))
    assert problems(made)


def test_random_windows_are_drawn_again(tmp_path: Path) -> None:
    drawn = ("--sampling", "random", "--batches", 3, "--seed", 7, "--boundaries", "split")
    export = small_export(tmp_path, *drawn, "--d-model", 8, "--heads", 2, "--artifact", "compact")
    assert problems(export) == []
    recommit(export, lambda document: document["windows"].update(dropped_tokens=1))
    assert "windows.dropped_tokens is 1" in problems(export)[0]
    recommit(export, lambda document: document["job"].update(seed=8))
    assert problems(export)


def test_a_seed_that_none_can_be_is_a_value_error(tmp_path: Path) -> None:
    drawn: tuple[Any, ...] = ("--sampling", "random", "--d-model", 8, "--heads", 2)
    manifest = read_manifest(small_export(tmp_path, *drawn))
    manifest.job["batch_size"] = 2**62
    with pytest.raises(ValueError, match="batch_size 4611686018427387904"):
        find(manifest, lambda: whole_stream(100), torch.tensor([0]))
