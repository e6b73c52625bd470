from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporters.manifest import read_manifest
from exporters.reading import open_export
from jobs.report import norms as module
from jobs.report.norms import embedding_norms, head_norms, quantiles
from tests.helpers import SMALL, small_export, succeed, write_corpus


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_quantiles_are_those_of_the_shards(layout: str, tmp_path: Path) -> None:
    export = small_export(tmp_path, "--layout", layout, "--kv-heads", 2)
    windows = open_export(export)
    found = quantiles([head_norms(windows.manifest, windows[i]) for i in (0, 2)])
    shard = load_file(next((export / "shards").glob("shard-00001-*")))
    for name in "qkv":
        values = shard[name][[0, 2]]
        values = values if layout == "bthd" else values.transpose(1, 2)  # [2, T, H, Dh]
        lengths = values.double().square().sum(-1).sqrt().flatten(0, 1)
        points = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        expected = lengths.quantile(points, 0).T.numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_filled_places_do_not_count(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish, red fish.\n" * 3)
    succeed("run", corpus, "--out", tmp_path / "out", *SMALL, "--tail", "pad")
    windows = open_export(tmp_path / "out")
    last = windows[len(windows) - 1]
    real = int(last["mask"].sum())
    assert 0 < real < 16
    assert head_norms(windows.manifest, last)["k"].shape == (4, real)


def test_rows_of_the_embedding_are_spread(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EMBEDDING_ROWS", 320)
    found = embedding_norms(export, read_manifest(export))
    weights = load_file(export / "weights.safetensors")["embedding.weight"]
    assert found is not None
    assert (found.rows, found.vocabulary_size) == (320, len(weights))
    assert sum(found.counts) == 320
    lengths = weights.norm(dim=1)
    assert float(lengths.min()) <= found.median <= float(lengths.max())


def test_a_layer_that_is_not_stored_has_no_rows(tmp_path: Path) -> None:
    export = small_export(tmp_path, "--no-save-weights")
    assert embedding_norms(export, read_manifest(export)) is None
