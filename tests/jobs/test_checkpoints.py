"""Folders of models: old and new names, shards, links, damage, and what is read of them."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from exporters.errors import WeightsError
from jobs.checkpoints import load_checkpoint, rounded
from kernels.layer import FirstLayer
from tests.recorded import quiet, save_model

T = 16
SMALL = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 8,
    "vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A saved model in float32, in one file."""
    save_model(folder, AutoConfig.for_model(family, **{**SMALL, **changes}), 6)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> FirstLayer:
    return load_checkpoint(folder, context_length=T, dtype=dtype)


def refusal(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(WeightsError) as error:
        load(folder, dtype)
    text = str(error.value)
    assert text.startswith(f"--weights {folder}")
    assert "\n" not in text
    return text


def assert_same(first: FirstLayer, second: FirstLayer) -> None:
    assert first.tensors().keys() == second.tensors().keys()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def tensors(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / SINGLE, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def change(folder: Path, **changes: Callable[[Tensor], Tensor] | None) -> None:
    """Change or drop tensors; `__` of a name stands for a dot."""
    held = tensors(folder)
    for name, act in changes.items():
        tensor = held.pop(name.replace("__", "."))
        if act is not None:
            held[name.replace("__", ".")] = act(tensor).contiguous()
    save_file(held, folder / SINGLE)


def rename(folder: Path, old: str, new: str) -> None:
    save_file({name.replace(old, new): t for name, t in tensors(folder).items()}, folder / SINGLE)


def shard(folder: Path) -> Path:
    """Split the one file: each tensor has a file of its own."""
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors(folder).items()):
        weight_map[name] = f"model-{number:05}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def reindex(folder: Path, tensor: str, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][tensor] = file
    (folder / INDEX).write_text(json.dumps(index))


EMBEDDING = "embed_tokens.weight"


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("gpt2", "transformer."), ("bert", "bert."), ("roberta", "roberta."), ("opt", "model."),
        ("distilbert", "distilbert."), ("gpt_neox", "gpt_neox."), ("llama", "model."),
        ("cohere", "model."), ("gemma3_text", "model."),
    ],
)  # fmt: skip
def test_names_with_the_prefix_of_a_model_with_a_head(
    tmp_path: Path, family: str, prefix: str
) -> None:
    """Every saved model here is without it."""
    folder = model(tmp_path, family)
    plain = load(folder)
    held = tensors(folder)
    assert not any(name.startswith(prefix) for name in held)
    save_file({prefix + name: tensor for name, tensor in held.items()}, folder / SINGLE)
    assert_same(plain, load(folder))


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_names_of_a_model_that_sees_too(tmp_path: Path, prefix: str) -> None:
    folder = model(tmp_path, "gemma3_text", head_dim=8)
    plain = load(folder)
    config = json.loads((folder / "config.json").read_text())
    both = {"model_type": "gemma3", "text_config": config, "vision_config": {"num_heads": 3}}
    (folder / "config.json").write_text(json.dumps(both))
    save_file({prefix + name: t for name, t in tensors(folder).items()}, folder / SINGLE)
    assert_same(plain, load(folder))


def test_names_as_converted_from_tensorflow(tmp_path: Path) -> None:
    folder = model(tmp_path, "bert")
    plain = load(folder)
    rename(folder, "LayerNorm.weight", "LayerNorm.gamma")
    rename(folder, "LayerNorm.bias", "LayerNorm.beta")
    assert_same(plain, load(folder))


def test_buffers_that_old_checkpoints_hold_are_left_alone(tmp_path: Path) -> None:
    folder = model(tmp_path, "gpt2")
    plain = load(folder)
    mask = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file({**tensors(folder), **mask}, folder / SINGLE)
    assert_same(plain, load(folder))


def test_only_shards_that_hold_needed_tensors_are_opened(tmp_path: Path) -> None:
    plain = load(model(tmp_path))
    folder = shard(tmp_path)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = ("layers.0.self_attn.q", "layers.0.self_attn.k", "layers.0.self_attn.v")
    for name, file in index.items():
        if not name.startswith((*needed, EMBEDDING, "layers.0.input_layernorm")):
            (folder / file).unlink()
    assert_same(plain, load(folder))


def test_tensors_are_not_left_in_the_users_file(tmp_path: Path) -> None:
    layer = load(model(tmp_path))
    before = {name: tensor.clone() for name, tensor in layer.tensors().items()}
    with (tmp_path / SINGLE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(b"\x01" * (size - size // 2))
    for name, tensor in layer.tensors().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, generator=generator, dtype=torch.float64) * 10
    step = torch.finfo(dtype).eps
    ties = 1 + step * torch.arange(0.5, 100, dtype=torch.float64)
    values = torch.cat([values, ties, ties + 1e-12, ties - 1e-12, -ties - 1e-12, ties * 0])
    found = rounded(values, dtype)
    if dtype == torch.float16:
        expected = torch.from_numpy(values.numpy().astype(np.float16))
        assert torch.equal(found, expected)
    for value, mine in zip(values.tolist(), found.tolist(), strict=True):
        error = abs(Fraction(mine) - Fraction(value))
        for way in (torch.inf, -torch.inf):
            other = torch.nextafter(torch.tensor(mine, dtype=dtype), torch.tensor(way, dtype=dtype))
            assert error <= abs(Fraction(float(other)) - Fraction(value))


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    text = refusal(folder)
    assert "pytorch_model.bin is a pickle" in text
    assert "safe_serialization" in text
    (folder / "pytorch_model.bin").unlink()
    assert "holds neither model.safetensors nor" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/passwd.safetensors", "no plain name"), ("../out.safetensors", "no plain name"),
        ("C:out.safetensors", "no plain name"), ("a\\b.safetensors", "no plain name"),
        ("sub/out.safetensors", "no plain name"), ("a\0b.safetensors", "no plain name"),
        ("\ud800.safetensors", "no plain name"), ("out.safetensors/..", "no .safetensors file"),
        ("pytorch_model-1.bin", "is a pickle"), ("shard.txt", "no .safetensors file"),
        ("", "no .safetensors file"), (".safetensors", "is not there"), (7, "gives no file"),
        ("missing.safetensors", "missing.safetensors is not there"),
        ("x" * 300 + ".safetensors", "name too long"),
        ("model-00001.safetensors", "is not there, though"),
    ],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_refused(
    tmp_path: Path, name: object, words: str
) -> None:
    folder = shard(model(tmp_path / "model"))
    save_file({EMBEDDING: torch.zeros(50, 32)}, tmp_path / "out.safetensors")
    reindex(folder, EMBEDDING, name)
    assert words.lower() in refusal(folder).lower()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    folder = shard(model(tmp_path))
    (folder / INDEX).write_text(content)
    refusal(folder)


def cached(tmp_path: Path) -> Path:
    """A model as the hub's cache keeps it: links into ../../blobs."""
    repo = tmp_path / "models--a--b"
    blobs, folder = repo / "blobs", repo / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(shard(model(tmp_path / "saved")).iterdir())):
        shutil.copy(path, blobs / f"hash{number}")
        (folder / path.name).symlink_to(Path("..", "..", "blobs", f"hash{number}"))
    return folder


def test_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    folder = cached(tmp_path)
    assert_same(load(tmp_path / "saved"), load(folder))
    (tmp_path / "link").symlink_to(folder)
    assert_same(load(tmp_path / "saved"), load(tmp_path / "link"))


@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00000.safetensors"])
def test_other_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = cached(tmp_path)
    target = (folder / name).resolve()
    outside = tmp_path / "outside"
    shutil.copy(target, outside)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert "leads out of the folder" in refusal(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    load(folder)
    target.unlink()
    target.symlink_to(outside)
    assert "leads out of the folder" in refusal(folder)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    folder = model(tmp_path)
    for name in (SINGLE, "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "not a regular file" in refusal(folder)


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    whole = (folder / SINGLE).read_bytes()
    huge = struct.pack("<Q", 30 << 20) + b" " * (31 << 20)
    for content in (b"", b"PK\x03\x04", whole[:-1], whole + b"x", whole[:100], huge):
        (folder / SINGLE).write_bytes(content)
        assert "give a model saved as safetensors" in refusal(folder)


Q = "layers__0__self_attn__q_proj__weight"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda t: t[:-1], "shape [31, 32]"),
        (lambda t: t.reshape(-1), "shape [1024]"),
        (lambda t: t.to(torch.int8), "is I8, not float32"),
        (lambda t: t.to(torch.float8_e4m3fn), "is F8_E4M3, not float32"),
        (lambda t: t.double(), "is F64, not float32"),
        (lambda t: t * torch.nan, "holds NaN or infinity"),
        (lambda t: t / 0, "holds NaN or infinity"),
        (None, "lacks the tensor layers.0.self_attn.q_proj.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, act: Callable[[Tensor], Tensor] | None, words: str
) -> None:
    folder = model(tmp_path)
    change(folder, **{Q: act})
    assert words in refusal(folder)


def test_an_embedding_of_another_size_or_none_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    change(folder, embed_tokens__weight=lambda t: t[:-1])
    assert "shape [49, 32], but config.json needs [50, 32]" in refusal(folder)
    change(folder, embed_tokens__weight=None)
    assert "lacks the embedding of llama: model.embed_tokens.weight" in refusal(folder)


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    change(folder, embed_tokens__weight=lambda t: t + 1e6)
    assert "beyond float16's largest, 65504" in refusal(folder, torch.float16)
    load(folder, torch.bfloat16)
    change(folder, embed_tokens__weight=lambda t: torch.full_like(t, 3.4e38))
    assert "bfloat16's largest" in refusal(folder, torch.bfloat16)


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_proj.bias",
        "layers.0.self_attn.q_proj.weight_scale", "layers.0.input_layernorm.bias",
    ],
)  # fmt: skip
def test_a_tensor_of_the_first_attention_that_is_not_known_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = model(tmp_path)
    save_file({**tensors(folder), name: torch.ones(32)}, folder / SINGLE)
    assert f"holds {name}, which is not understood for llama" in refusal(folder)
