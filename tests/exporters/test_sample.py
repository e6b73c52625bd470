from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporters.layerfile import load_layer, save_layer
from exporters.sample import draw, recompute
from kernels import reference
from kernels.layer import Norm
from tests.helpers import (
    SMALL,
    qkvmill,
    random_layer,
    recommit,
    small_export,
    succeed,
    write_corpus,
)

ALL = 10**9
TEXT = "The tide came in over the flat sand, and the children ran before it. " * 12
VOCABULARY = 50257


def check(export: Path, windows: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """What is wrong with some windows, or with all."""
    return recompute(export, draw(export, ALL) if windows is None else windows, lambda _: None)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file, and make every hash of the export right again."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata)
    recommit(path.parent if path.parent.name != "shards" else path.parents[1])


def second_shard(export: Path) -> Path:
    return next((export / "shards").glob("shard-00002-of-*"))


@pytest.mark.parametrize("artifact", ["full", "compact"])
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        pytest.param("float32", ("--sampling", "random", "--batches", 3, "--seed", 7), id="random"),
        pytest.param("float32", ("--layout", "bthd", "--positions", "none"), id="bthd"),
        pytest.param("bfloat16", ("--layout", "bthd", "--stride", 5), id="bfloat16-bthd"),
        pytest.param("float16", ("--positions", "sinusoidal"), id="float16-sinusoidal"),
        pytest.param("bfloat16", ("--positions", "rope"), id="bfloat16-rope"),
    ],
)
def test_what_a_run_wrote_is_what_float64_gives(
    tmp_path: Path, artifact: str, norm: Norm, dtype: str, options: tuple[object, ...]
) -> None:
    layer = random_layer(
        d=48, heads=6, kv_heads=2, head_dim=8, norm=norm, vocabulary_size=VOCABULARY
    )
    save_layer(tmp_path, "w.safetensors", layer)
    corpus = write_corpus(tmp_path / "corpus", a=TEXT, b="Low water.")
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, "--weights", tmp_path / "w.safetensors", "--dtype", dtype,
        "--context-length", 16, "--tokenizer", "r50k_base", "--artifact", artifact,
        "--export", "tokens", "--export", "features", "--export", "qkv", "--device", "cpu",
        "--method", "tables" if artifact == "compact" else "direct", *options,
    )  # fmt: skip
    assert check(out) == ()


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_the_command_says_how_many_windows_it_recomputed(
    export: Path, compact: Path, artifact: str
) -> None:
    out = export if artifact == "full" else compact
    for asked, done in ((3, 3), (ALL, 34)):
        result = succeed("verify", out, "--sample", asked)
        assert f"{done} windows recomputed, all as they should be" in result.stdout
        assert done == len(succeed("verify", out, "--sample", asked, "--json").json["windows"])


def test_a_sample_is_the_same_each_time_and_part_of_a_larger_one(export: Path) -> None:
    order = torch.randperm(34, generator=torch.Generator().manual_seed(0)).tolist()
    for count in (1, 5, 33, 34, ALL):
        assert tuple(sorted(order[:count])) == draw(export, count)
    assert draw(export, ALL) == tuple(range(34))


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_a_sample_of_no_windows_is_wrong_usage(export: Path, count: str) -> None:
    result = qkvmill("verify", export, "--sample", count)
    assert result.status == 2
    assert "--sample" in result.stderr


def change_one(tensors: dict[str, Tensor], name: str) -> None:
    """Change one value of window 1 of a shard: a float by two percent of the largest."""
    values = tensors[name][1].view(-1)
    values[7 % len(values)] += 0.02 * values.abs().max() if values.is_floating_point() else 1


@pytest.mark.parametrize(
    "name",
    [
        "window_start", "input_ids", "target_ids", "document_ids", "x", "y", "q", "k", "v",
    ],
)  # fmt: skip
def test_one_wrong_value_of_a_shard_is_found_by_a_sample_alone(export: Path, name: str) -> None:
    path = second_shard(export)
    rewrite(path, lambda tensors: change_one(tensors, name))
    succeed("verify", export)
    result = qkvmill("verify", export, "--sample", ALL, "--json")
    assert result.status == 1
    (problem,) = result.json["problems"]
    assert problem.startswith(f"shards/{path.name}: window 5: {name} ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_found(export: Path, value: float) -> None:
    rewrite(second_shard(export), lambda tensors: tensors["v"][0, 1, 2].fill_(value))
    (problem,) = check(export)
    assert "window 4: v is" in problem


def test_an_error_of_a_few_last_places_is_found(export: Path) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors["k"][2, 0, 0, 0] += 16 * torch.finfo(torch.float32).eps * tensors["k"].abs().max()

    rewrite(second_shard(export), nudge)
    (problem,) = check(export)
    assert "window 6: k is" in problem


@pytest.mark.parametrize(
    ("file", "tensor", "wrong"),
    [
        ("tables.safetensors", "token_table", {"q", "k", "v"}),
        ("tables.safetensors", "position_table", {"q", "k", "v"}),
        ("weights.safetensors", "q_proj.weight", {"q"}),
        ("weights.safetensors", "k_proj.bias", {"k"}),
    ],
)
def test_a_wrong_value_of_a_compact_export_is_found(
    compact: Path, file: str, tensor: str, wrong: set[str]
) -> None:
    row = (slice(None), 3) if file == "tables.safetensors" else 3
    rewrite(compact / file, lambda tensors: tensors[tensor][row].add_(0.5))
    succeed("verify", compact)
    found = check(compact)
    assert found
    assert all(problem.startswith("tables.safetensors: window ") for problem in found)
    assert {problem.split(": ")[2].split()[0] for problem in found} == wrong


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_random_windows_that_begin_elsewhere_are_found(tmp_path: Path, artifact: str) -> None:
    options = ("--sampling", "random", "--batches", 2, "--seed", 3, "--artifact", artifact)
    out = small_export(tmp_path, *options)
    assert check(out) == ()
    path = out / "windows.safetensors"
    path = path if artifact == "compact" else next((out / "shards").iterdir())
    rewrite(path, lambda tensors: tensors["window_start"][1].add_(1))
    succeed("verify", out)
    found = check(out)
    assert f"{path.relative_to(out)}: window 1: window_start differs" in found[0]


def test_tokens_alone_are_compared_with_the_stream(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=TEXT)
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, "--context-length", 16, "--export", "tokens")
    succeed("verify", out, "--sample", ALL)
    (path,) = (out / "shards").iterdir()
    rewrite(path, lambda tensors: tensors["target_ids"][2].add_(1))
    result = qkvmill("verify", out, "--sample", ALL)
    assert "window 2: target_ids differs from the token stream in 16 of 16" in result.stderr


@pytest.mark.parametrize("artifact", ["full", "compact"])
def test_without_stored_weights_a_sample_is_refused_in_a_sentence(
    tmp_path: Path, artifact: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=TEXT)
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *SMALL, "--no-save-weights", "--artifact", artifact)
    succeed("verify", out)
    result = qkvmill("verify", out, "--sample", 1, "--quiet")
    assert result.status == 1
    sentence = f"{out} was made with --no-save-weights, so windows cannot be recomputed from it"
    assert result.stderr == f"Error: {sentence}; verify it without --sample\n"


def test_bytes_that_are_wrong_are_said_before_anything_is_recomputed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=TEXT)
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *SMALL, "--no-save-weights")
    (path,) = (out / "shards").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = qkvmill("verify", out, "--sample", 1)
    assert "do not match the hash" in result.stderr
    assert "recomputed" not in result.stderr


@pytest.mark.parametrize("change", [{"eps": 0.5}, {"heads": 2}, {"dtype": "float16"}])
def test_weights_that_are_not_those_of_the_manifest_are_named(
    compact: Path, change: dict[str, Any]
) -> None:
    recommit(compact, lambda document: document["layer"].update(change))
    result = qkvmill("verify", compact, "--sample", 1, "--quiet")
    assert result.status == 1
    assert result.stderr.startswith(f"Error: {compact}/")
    assert next(iter(change)) in result.stderr


def test_a_token_without_a_row_in_the_weights_is_named(export: Path) -> None:
    path = next((export / "tokens").iterdir())
    tensors = load_file(path)
    tensors["input_ids"][40] = 2**30
    save_file(tensors, path, {"format": "pt"})
    recommit(export)
    result = qkvmill("verify", export, "--sample", ALL, "--quiet")
    assert result.status == 1
    assert f"the tokens of {export} hold {2**30}, but its weights.safetensors" in result.stderr


def test_windows_of_one_token_are_measured_fairly(tmp_path: Path) -> None:
    save_layer(tmp_path, "w.safetensors", random_layer(vocabulary_size=VOCABULARY))
    corpus = write_corpus(tmp_path / "corpus", a=TEXT)
    out = tmp_path / "out"
    succeed(
        "run", corpus, "--out", out, "--weights", tmp_path / "w.safetensors", "--device", "cpu",
        "--context-length", 1, "--tokenizer", "r50k_base", "--method", "direct",
    )  # fmt: skip
    for index in range(12):
        assert check(out, (index,)) == ()


def test_tf32_is_held_to_the_error_of_tf32(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=TEXT)
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *SMALL, "--method", "direct")
    layer = load_layer(out / "weights.safetensors", context_length=16)

    def product_in_tf32(tensors: dict[str, Tensor]) -> None:
        x = reference.embed(layer, tensors["input_ids"])
        short_x, short_w = (
            (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)
            for tensor in (x, layer.q_weight)
        )
        q = torch.nn.functional.linear(short_x, short_w, layer.q_bias)
        tensors["q"] = q.view(*x.shape[:2], 4, 8).transpose(1, 2).contiguous()

    (path,) = (out / "shards").iterdir()
    rewrite(path, product_in_tf32)
    assert {problem.split(": ")[2].split()[0] for problem in check(out)} == {"q"}
    recommit(out, lambda document: document["compute"].update(precision="tf32"))
    assert check(out) == ()
    rewrite(path, lambda tensors: change_one(tensors, "q"))
    (problem,) = check(out)
    assert "window 1: q is" in problem


def test_a_sample_of_tables_that_are_none_sends_nobody_to_verify_again(compact: Path) -> None:
    def turn(tensors: dict[str, Tensor]) -> None:
        tensors["token_ids"] = tensors["token_ids"].flip(0).contiguous()

    rewrite(compact / "tables.safetensors", turn)
    result = qkvmill("verify", compact, "--sample", 2)
    assert result.status == 1
    assert result.stderr.endswith("does not hold tables: token_ids do not ascend from 0 on\n")
