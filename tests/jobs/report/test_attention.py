from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporters.manifest import Manifest, read_manifest
from exporters.reading import open_export
from jobs.report.attention import BUDGET, extent, key_heads, notes, scale, scores


def widths(manifest: Manifest, length: int, **layer: Any) -> Manifest:
    return replace(
        manifest,
        layer={**(manifest.layer or {}), **layer},
        windows={**manifest.windows, "context_length": length},
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "length", "windows"),
    [
        (1, 1, 8, 4, 1), (12, 12, 64, 1024, 3), (32, 32, 128, 1024, 3), (32, 8, 128, 4096, 12),
        (128, 8, 128, 4096, 3), (128, 128, 128, 512, 12), (1, 1, 8192, 64, 12),
    ],
)  # fmt: skip
def test_what_is_held_fits_the_page(
    heads: int, kv_heads: int, head_dim: int, length: int, windows: int, export: Path
) -> None:
    manifest = widths(
        read_manifest(export), length, heads=heads, kv_heads=kv_heads, head_dim=head_dim
    )
    shown = extent(manifest, windows)
    keys = key_heads(manifest, shown.heads)
    a_place = 4 * head_dim * (len(shown.heads) + len(keys)) + 8 * len(shown.heads)
    assert windows * shown.places * a_place <= BUDGET
    assert 1 <= shown.places <= min(length, 64)
    assert shown.heads[0] == 0
    assert keys == sorted({head * kv_heads // heads for head in shown.heads})
    if shown.places > 24:
        assert shown.heads == tuple(range(heads))


def test_sums_are_over_every_key_of_the_window(export: Path) -> None:
    windows = open_export(export)
    window = windows[3]
    found = scores(windows.manifest, window, extent(windows.manifest, 1))
    for head in range(4):
        product = window["q"][head].double() @ window["k"][head].double().T / 8**0.5
        torch.testing.assert_close(found.sums[head], product.exp().sum(1).log())


def test_the_scale_is_the_models_or_that_of_the_width(export: Path) -> None:
    manifest = read_manifest(export)
    assert scale(widths(manifest, 16, attention_scale=0.0625, head_dim=8)) == 0.0625
    assert scale(widths(manifest, 16, attention_scale=None, head_dim=64)) == 0.125


def test_what_differs_from_the_model_is_said(export: Path) -> None:
    manifest = read_manifest(export)
    assert notes(manifest) == []
    assert "both ways" in notes(widths(manifest, 16, family="bert"))[0]
    assert "caps its scores" in notes(widths(manifest, 16, family="gemma2"))[0]
    turned = replace(manifest, job={**manifest.job, "pre_rope": True})
    assert "--pre-rope" in notes(turned)[0]
