"""The lines in the manifest of a compact export, run as they stand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from exporters.layerfile import save_layer
from exporters.manifest import read_manifest
from exporters.reading import open_export
from kernels.layer import DTYPES, Norm
from tests.helpers import random_layer, succeed, write_corpus


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("positions", ["learned", "none", "rope", "interleaved"])
@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_the_lines_give_the_bits_of_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str, positions: str, norm: Norm,
    dtype: str,
) -> None:  # fmt: skip
    heads_norm = "head" if positions == "rope" else "none"
    corpus = write_corpus(tmp_path / "corpus", a="How vexingly quick daft zebras jump! " * 40)
    layer = random_layer(
        d=48, heads=6, kv_heads=2, head_dim=8, norm=norm, vocabulary_size=100300,
        rotary={"rope": 8, "interleaved": 6}.get(positions, 0), qk_norm=heads_norm,
        interleaved=positions == "interleaved", positions=positions == "learned",
    )  # fmt: skip
    save_layer(tmp_path, "w.safetensors", layer)
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, "--artifact", "compact", "--context-length", 16,
        "--weights", tmp_path / "w.safetensors", "--dtype", dtype,
        "--sampling", sampling, "--device", "cpu",
    )  # fmt: skip
    lines = read_manifest(out).expand
    assert lines is not None
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 120
    windows = open_export(out)
    monkeypatch.chdir(out)
    for index in (0, len(windows) - 1):
        names: dict[str, Any] = {}
        exec("\n".join(lines).replace("i, t = 0,", f"i, t = {index},"), names)
        for name in "qkv":
            assert torch.equal(names[name], windows[index][name])


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(
    "options",
    [
        ("--tail", "pad"),
        ("--boundaries", "split", "--tail", "pad", "--stride", 12),
        ("--boundaries", "split"),
        ("--boundaries", "split", "--sampling", "random"),
    ],
    ids=["pad", "split-pad", "split", "split-random"],
)
def test_the_lines_know_documents_and_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], positions: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="How vexingly quick! " * 20, b="Daft zebras. " * 9)
    rotary = 8 if positions == "rope" else 0
    layer = random_layer(d=48, heads=6, norm="layernorm", vocabulary_size=50257, rotary=rotary)
    save_layer(tmp_path, "w.safetensors", layer)
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, "--artifact", "compact", "--context-length", 16, *options,
        "--weights", tmp_path / "w.safetensors", "--device", "cpu", "--tokenizer", "gpt2",
    )  # fmt: skip
    lines = read_manifest(out).expand
    assert lines is not None
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 120
    windows = open_export(out)
    monkeypatch.chdir(out)
    for index in range(len(windows)):
        names: dict[str, Any] = {}
        exec("\n".join(lines).replace("i, t = 0,", f"i, t = {index},"), names)
        for name in "qkv":
            assert torch.equal(names[name], windows[index][name])
