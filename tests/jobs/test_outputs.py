from pathlib import Path
from typing import Any

import pytest
import torch

from exporters.contents import window_bytes
from jobs.config import JobConfig
from jobs.layershape import LayerShape
from jobs.outputs import allocate, shard_name, shard_tensors, windows_per_shard
from jobs.tokenizer import tiktoken_encoding
from tests.helpers import qkvmill, write_corpus

LAYER = LayerShape(
    vocabulary_size=100, d_model=64, heads=4, kv_heads=2, head_dim=16, norm="none", positions=8,
    angles=0, normed_heads=False, bytes=1,
)  # fmt: skip


def config(**options: Any) -> JobConfig:
    given = {"corpus": (Path("a.txt"),), "out": Path("out"), "context_length": 8, **options}
    return JobConfig(**given)


def test_the_tensors_of_a_window() -> None:
    plans = shard_tensors(config(export=("tokens", "features", "qkv")), LAYER)
    buffers = allocate(plans, 3, pinned=False)
    assert {name: tuple(buffer.shape) for name, buffer in buffers.items()} == {
        "window_start": (3,),
        "input_ids": (3, 8), "target_ids": (3, 8), "document_ids": (3, 8),
        "x": (3, 8, 64), "y": (3, 8, 64),
        "q": (3, 4, 8, 16), "k": (3, 2, 8, 16), "v": (3, 2, 8, 16),
    }  # fmt: skip
    assert 3 * window_bytes(plans) == sum(buffer.nbytes for buffer in buffers.values())


def test_padded_windows_have_a_mask_whatever_is_exported() -> None:
    for export in (("tokens",), ("features",), ("qkv",)):
        plans = shard_tensors(config(export=export, tail="pad"), LAYER)
        assert (plans["mask"].dtype, plans["mask"].shape) == (torch.bool, (8,))
    assert "mask" not in shard_tensors(config(boundaries="split"), LAYER)


def test_the_other_layout_and_a_half_dtype() -> None:
    plans = shard_tensors(config(layout="bthd", dtype="bfloat16"), LAYER)
    assert plans["k"].shape == (8, 2, 16)
    assert plans["q"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shard_size", "batch_size", "expected"),
    [(1, 4, 1), (3000, 4, 2), (1304 * 4, 4, 4), (1304 * 11, 4, 8), (1304 * 11, 16, 11)],
)
def test_a_shard_holds_whole_batches_where_one_fits(
    shard_size: int, batch_size: int, expected: int
) -> None:
    plans = shard_tensors(config(export=("features",), dtype="bfloat16"), LAYER)
    plans["window_start"] = plans["x"]
    per_window = window_bytes(plans)
    scaled = shard_size * per_window // 1304
    assert windows_per_shard(plans, scaled, batch_size) == expected


def test_shards_are_numbered_from_one_and_sort_as_they_count() -> None:
    assert shard_name(0, 12) == "shards/shard-00001-of-00012.safetensors"
    names = [shard_name(index, 123_456) for index in (0, 9, 99_999, 123_455)]
    assert names == sorted(names)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_more_shards_than_a_manifest_names_are_refused(tmp_path: Path, command: str) -> None:
    text = "liquor jugs " * 260_000
    corpus = write_corpus(tmp_path / "corpus", a=text)
    windows = len(tiktoken_encoding("gpt2")[0].encode_ordinary(text)) - 1
    result = qkvmill(
        command, corpus, "--out", tmp_path / "out", "--export", "tokens", "--context-length", 1,
        "--shard-size", 1, "--batch-size", 1, "--tokenizer", "gpt2",
    )  # fmt: skip
    assert result.status == (2 if command == "run" else 0)  # a plan tells of it
    assert f"make {windows:,} shards, but a manifest names at most 500,000" in " ".join(
        (result.stdout + result.stderr).split()
    )
    assert not (tmp_path / "out").exists()
