"""Exports that were written before, read now: those of every format version, as committed."""

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.manifest import FORMAT_VERSION
from exporters.reading import open_export
from tests.helpers import ROOT, SMALL, qkvmill, recommit, succeed

FIXTURES = ROOT / "tests" / "fixtures"
RELEASED = sorted(FIXTURES.glob("format-*"))
# fmt: off
STREAM = [
    162, 110, 230, 165, 246, 111, 162, 120, 242, 161, 242, 109, 171, 120, 234,  # the first line ...
    164, 98, 123, 162, 109, 253, 162, 107, 242, 165, 224, 222, 171, 120, 234, 198,
    270, 373, 262, 614, 286, 428, 11, 290, 407, 286, 326, 25, 198,  # it was the year of this ...
    361, 612, 389, 517, 11, 484, 481, 307, 262, 976, 13, 198,  # if there are more ...
    568, 340, 318, 625, 11, 475, 788, 340, 318, 407, 13, 198,  # so it is over ...
]
"""The ids that tiktoken gives gpt2 for the corpus of format-1."""
# fmt: on
END_OF_TEXT = 50256


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the exports of one format version."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_there_are_exports_of_every_version() -> None:
    assert [path.name for path in RELEASED] == [f"format-{n + 1}" for n in range(FORMAT_VERSION)]


def test_the_bytes_are_those_that_were_committed() -> None:
    for folder in RELEASED:
        for name in ("full", "compact", "padded"):
            command = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
            done = subprocess.run(command, cwd=folder / name, capture_output=True, check=False)
            assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("name", ["full", "compact"])
def test_ids_are_read_as_they_were_written(released: Path, name: str) -> None:
    (windows,) = open_export(released / name).batches(100)
    assert windows["window_start"].tolist() == [0, 8, 16, 24, 32, 40, 48, 56]
    assert windows["input_ids"].flatten().tolist() == STREAM[:64]
    assert windows["target_ids"].flatten().tolist() == STREAM[1:65]
    assert windows["document_ids"].flatten().tolist() == [0] * 56 + [1] * 8
    assert "mask" not in windows


def near(found: Tensor, *expected: float, within: float) -> bool:
    return bool((found.double().flatten() - torch.tensor(expected).double()).abs().max() < within)


@pytest.mark.parametrize("name", ["full", "compact"])
def test_floats_are_read_as_they_were_written(released: Path, name: str) -> None:
    last = open_export(released / name)[7]
    shapes = {
        key: list(tensor.shape) for key, tensor in last.items() if tensor.dtype == torch.float32
    }
    assert shapes == {"x": [8, 8], "y": [8, 8], "q": [2, 8, 4], "k": [1, 8, 4], "v": [1, 8, 4]}
    # Token 475 at place 5, from the weights in float64.
    assert near(
        last["q"][:, 5], -0.108407, -1.738602, -1.463919, 1.271866, -0.149875, -0.170111, -0.408897,
        0.099186, within=2e-6,
    )  # fmt: skip
    assert near(last["k"][:, 5], 0.229548, 0.021849, -0.713995, -0.513313, within=2e-6)
    assert near(last["v"][:, 5], -0.830980, -0.147699, -0.371668, -0.613376, within=2e-6)


def test_windows_of_documents_are_read_as_they_were_written(released: Path) -> None:
    windows = open_export(released / "padded")
    (batch,) = windows.batches(100)
    assert batch["window_start"].tolist() == [0, 8, 16, 24, 32, 40, 48, 57, 65]
    last = windows[8]
    assert last["mask"].tolist() == [True] * 3 + [False] * 5
    assert last["input_ids"].tolist() == [318, 407, 13] + [END_OF_TEXT] * 5
    assert last["target_ids"].tolist() == [407, 13, 198] + [END_OF_TEXT] * 5
    assert last["document_ids"].tolist() == [1] * 8
    assert (last["q"].dtype, list(last["q"].shape)) == (torch.bfloat16, [8, 2, 4])
    # Token 13 at place 2, from the layer that make.py draws, in float64; half a last place of
    # bfloat16 is 2^-6 from 4 on.
    assert near(
        last["q"][2], 2.260016, 2.280050, 5.096892, 2.500262, -1.903107, -3.429988, -1.654155,
        -6.473324, within=0.0157,
    )  # fmt: skip
    assert near(last["k"][2], -1.971234, -3.643358, -5.117425, -3.581641, within=0.0157)
    assert near(last["v"][2], 4.365603, 1.845888, -3.976113, -0.826820, within=0.0157)


def test_what_is_stored_and_what_is_computed_are_the_same(released: Path) -> None:
    (full,), (compact,) = (
        open_export(released / name).batches(100) for name in ("full", "compact")
    )
    assert full.keys() == compact.keys()
    for name, tensor in full.items():
        if tensor.is_floating_point():
            assert float((tensor - compact[name]).abs().max()) < 2e-6
        else:
            assert torch.equal(tensor, compact[name])


@pytest.mark.parametrize("name", ["compact", "padded"])
def test_it_expands_to_what_it_is_read_as(released: Path, tmp_path: Path, name: str) -> None:
    succeed("expand", released / name, "--out", tmp_path / "full", "--device", "cpu")
    (expanded,), (compact,) = (
        open_export(path).batches(100) for path in (tmp_path / "full", released / name)
    )
    assert expanded.keys() == compact.keys()
    assert all(torch.equal(tensor, expanded[key]) for key, tensor in compact.items())


@pytest.mark.parametrize("name", ["compact", "padded"])
def test_the_lines_of_the_manifest_expand_it(
    released: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    windows = open_export(released / name)
    monkeypatch.chdir(released / name)
    lines = "\n".join(windows.manifest.expand or ())
    last = len(windows) - 1
    names: dict[str, Any] = {}
    exec(lines.replace("i, t = 0,", f"i, t = {last},"), names)
    for key in "qkv":
        swapped = names[key] if name == "compact" else names[key].transpose(0, 1)
        assert float((swapped.float() - windows[last][key].float()).abs().max()) < 2**-6


NUMPY = {"I64": "<i8", "I32": "<i4", "F32": "<f4"}


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, by its published layout: a length, a header, bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], NUMPY[entry["dtype"]])
        found[name] = values.reshape(entry["shape"])
    return found


def test_numpy_and_the_page_are_enough_to_read_it(released: Path) -> None:
    root, i, p = released / "padded", 8, 2
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    stream = arrays(root / "tokens/tokens-00001.safetensors")
    starts = arrays(root / "windows.safetensors")
    t, layer = arrays(root / "tables.safetensors"), manifest["layer"]
    start, pairs = starts["window_start"][i], starts["window_pairs"][i]
    ids = np.full(manifest["windows"]["context_length"], manifest["tokenizer"]["end_of_text"])
    ids[:pairs] = stream["input_ids"][start : start + pairs]
    assert ids.tolist() == [318, 407, 13] + [END_OF_TEXT] * 5
    assert (stream["document_starts"] <= start).sum() - 1 == 1

    u = np.searchsorted(t["token_ids"], ids[p])
    means = t["token_means"][u] + t["position_means"][p]
    length = np.linalg.norm(t["token_features"][u] + t["position_features"][p] - means)
    assert length >= max(t["token_lengths"][u], t["position_lengths"][p]) / 2
    r = (length**2 / layer["d_model"] + layer["eps"]) ** -0.5
    constant = t["constant"].reshape(-1, layer["head_dim"])
    out = r * (t["token_table"][:, u] + t["position_table"][:, p]) + constant
    counts = [layer["heads"], layer["kv_heads"], layer["kv_heads"]]
    q, k, v = torch.split(torch.from_numpy(out), counts)
    # As in the test of padded windows, but not rounded to bfloat16.
    assert near(
        q, 2.260016, 2.280050, 5.096892, 2.500262, -1.903107, -3.429988, -1.654155,
        -6.473324, within=1e-5,
    )  # fmt: skip
    assert near(k, -1.971234, -3.643358, -5.117425, -3.581641, within=1e-5)
    assert near(v, 4.365603, 1.845888, -3.976113, -0.826820, within=1e-5)


def test_commands_take_it(released: Path) -> None:
    for name in ("full", "compact"):
        succeed("verify", released / name, "--sample", 8)
    succeed("verify", released / "padded")
    for name in ("full", "compact", "padded"):
        succeed("inspect", released / name)
        shown = succeed("inspect", released / name, "--window", 6, "--json")
        assert shown.json["input_ids"] == STREAM[48:56]
        assert ", they will be the same." in shown.stdout


def test_tokens_of_it_are_a_corpus(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    command = ("run", released / "full", "--out", out, "--tokenizer", "gpt2", "--export", "tokens")
    succeed(*command, "--context-length", 8, "--separator", "none")
    (windows,) = open_export(out).batches(100)
    assert windows["input_ids"].flatten().tolist() == STREAM[:64]


@pytest.mark.parametrize("name", ["full", "compact"])
def test_a_newer_version_is_refused_by_every_command(tmp_path: Path, name: str) -> None:
    export, out = tmp_path / "export", tmp_path / "out"
    shutil.copytree(RELEASED[-1] / name, export)
    recommit(export, lambda document: document.update(format_version=FORMAT_VERSION + 1))
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    corpus = RELEASED[-1] / "corpus"
    for command in (
        ("inspect", export),
        ("inspect", export, "--window", 0),
        ("verify", export),
        ("verify", export, "--sample", 1),
        ("expand", export, "--out", out),
        ("run", corpus, "--out", export, *SMALL, "--quiet"),
        ("run", export, "--out", out, *SMALL, "--quiet"),
    ):
        result = qkvmill(*command)
        assert result.status == 1, command
        (line,) = result.stderr.splitlines()
        assert line == (
            f"Error: {export / 'manifest.json'} has format version {FORMAT_VERSION + 1}, but this "
            f"qkvmill reads versions up to {FORMAT_VERSION}; install a newer qkvmill"
        )
    assert before == {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert not out.exists()
