"""The notebook's own numbers, through the command line."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from torch import Tensor

from kernels.positions import sinusoidal
from tests.helpers import GOLDEN, NOTEBOOK, succeed

OPTIONS = (
    "--sampling", "random", "--seed", 10687721, "--context-length", 16, "--d-model", 64,
    "--heads", 4, "--batch-size", 4, "--batches", 1, "--vocab-size", "corpus", "--device", "cpu",
    "--export", "tokens", "--export", "features", "--export", "qkv",
)  # fmt: skip


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("notebook") / "out"
    succeed("run", NOTEBOOK, "--out", out, *OPTIONS)
    return out


def shard(notebook: Path) -> dict[str, Tensor]:
    return load_file(notebook / "shards/shard-00001-of-00001.safetensors")


def test_the_text_and_its_tokens(notebook: Path) -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert (60, GOLDEN["text"]) == (len(text), text)
    stream = load_file(notebook / "tokens/tokens-00001.safetensors")
    assert GOLDEN["token_ids"] == stream["input_ids"].tolist()
    assert stream["document_starts"].tolist() == [0]


def test_the_batch_is_the_notebooks_x_batch_and_y_batch(notebook: Path) -> None:
    tensors = shard(notebook)
    assert GOLDEN["x_batch"] == tensors["input_ids"].tolist()
    assert GOLDEN["y_batch"] == tensors["target_ids"].tolist()
    assert GOLDEN["window_starts"] == tensors["window_start"].tolist()


def test_the_windows_decode_to_the_notebooks_texts(notebook: Path) -> None:
    for index in range(4):
        window = succeed("inspect", notebook, "--window", index, "--json").json
        assert GOLDEN["decoded_x"][index] == window["input_text"]
        assert GOLDEN["decoded_y"][index] == window["target_text"]


def test_the_embedding_is_as_large_as_the_notebooks(notebook: Path) -> None:
    weights = load_file(notebook / "weights.safetensors")
    assert GOLDEN["embedding_shape"] == list(weights["embedding.weight"].shape)
    assert torch.equal(sinusoidal(16, 64), weights["position.weight"])


def test_x_and_y_are_exactly_embedding_plus_positions(notebook: Path) -> None:
    tensors = shard(notebook)
    weights = load_file(notebook / "weights.safetensors")
    for name, ids in (("x", "input_ids"), ("y", "target_ids")):
        rows = weights["embedding.weight"][tensors[ids].long()]
        assert torch.equal(rows + weights["position.weight"], tensors[name])


def test_q_k_and_v_are_the_linear_layers_of_x(notebook: Path) -> None:
    tensors = shard(notebook)
    weights = load_file(notebook / "weights.safetensors")
    for name in "qkv":
        linear = torch.nn.functional.linear(
            tensors["x"], weights[f"{name}_proj.weight"], weights[f"{name}_proj.bias"]
        )
        by_head = linear.view(4, 16, 4, 16).transpose(1, 2)
        torch.testing.assert_close(tensors[name], by_head, rtol=1e-5, atol=1e-5)


def test_reading_needs_no_torch_and_attention_takes_q_k_v_as_they_are(notebook: Path) -> None:
    arrays = load_numpy(notebook / "shards/shard-00001-of-00001.safetensors")
    tensors = shard(notebook)
    assert {n: arrays[n].shape for n in ("q", "x")} == {"q": (4, 4, 16, 16), "x": (4, 16, 64)}
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert out.shape == q.shape
    assert bool(torch.isfinite(out).all())
