"""Mutated files of ours: whatever is in them, only errors that are declared come out.

Each target runs for a third of QKVMILL_FUZZ_SECONDS, 20 where it is not set, from the seed
QKVMILL_FUZZ_SEED on, 0 where it is not set. Hypothesis makes a failure as small as it can, and
prints `@reproduce_failure('VERSION', b'TEXT')`; with that TEXT in QKVMILL_FUZZ_FAILURE a test
repeats it alone.
"""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, reproduce_failure, seed, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from exporters.layerfile import load_layer, save_layer
from exporters.manifest import GARBLED, garbled_is_damaged, read_manifest
from exporters.reading import open_export
from exporters.verify import verify
from jobs.checkpoints import load_checkpoint
from kernels.errors import QkvmillError
from kernels.layer import Norm
from tests.helpers import random_layer, succeed, write_corpus

LENGTH = ("--context-length", 16)
SECONDS = float(os.environ.get("QKVMILL_FUZZ_SECONDS", "20")) / 3
SEED = int(os.environ.get("QKVMILL_FUZZ_SEED", "0"))
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 0.5, -0.0, 1e308, 2**31, 2**31 - 1, 2**40, 2**53, 2**62, 2**63,
    2**64, 10**30, 10**400, "", "x", "0", "\0", "\ud800", "\x1b[31m", "../x.safetensors",
    "/etc/passwd", "tokens", "windows", "tables", "full", "compact", "qkv", "features", "float16",
    "bfloat16", "float64", "int32", "int64", "F16", "F64", "I64", "BOOL", "shards", [], [0], [-1],
    [2**62, 2**62], [[]], {}, {"a": 1}, float("nan"), float("inf"), "x" * 5000,
)  # fmt: skip

WEIGHTS: list[dict[str, Any]] = [
    {}, {"norm": "layernorm"}, {"norm": "rmsnorm", "kv_heads": 2}, {"positions": False},
    {"biases": False}, {"rotary": 2, "qk_norm": "head", "norm": "rmsnorm"}, {"qk_norm": "all"},
]  # fmt: skip


def chosen(chance: Random, document: Any) -> tuple[Any, Any]:
    """A place inside a JSON document, as the list or object and the index or key in it.

    Every step down is chosen alike, so that a scalar of a section is as likely as a long list.
    """
    target = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = chance.choice(keys)
        inner = target[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.15:
            return target, key
        target = inner


def change(chance: Random, document: Any) -> None:
    """Replace, drop, repeat or exchange a value of a JSON document, or count it up or down."""
    if not document:
        return
    target, last = chosen(chance, document)
    value, action = target[last], chance.randrange(6)
    if action == 0:
        del target[last]
    elif action == 1 and isinstance(target, list):
        target.insert(last, deepcopy(value))
    elif action == 2 and isinstance(target, dict):
        target[chance.choice(("", "x", "shape", "q", "\ud800", "../x"))] = deepcopy(value)
    elif action == 3 and type(value) is int:
        target[last] = value + chance.choice((-1, 1, -value, value, 2**32))
    elif action == 4:
        source, key = chosen(chance, document)
        target[last] = deepcopy(source[key])
    else:
        target[last] = deepcopy(chance.choice(ODD))


def mutated_json(chance: Random, document: Any) -> str:
    """The text of a JSON document that was changed, and now and then is no JSON any more."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        change(chance, document)
    text = json.dumps(document)
    if chance.random() < 0.1:
        text = text[: chance.randrange(len(text))] + chance.choice(
            ("", "{", "[" * 2000, "9" * 5000)
        )
    if chance.random() < 0.1:
        text = text.replace('"', '"shape": 1, "', chance.randrange(1, 4))
    return text


def mutated_bytes(chance: Random, data: bytes) -> bytes:
    """Bytes flipped, cut off, put in, or exchanged."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = chance.randrange(len(changed) + 1)
        action = chance.randrange(4)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            del changed[at : at + chance.choice((1, 8, 100, len(changed)))]
        elif action == 2:
            changed[at:at] = chance.randbytes(chance.choice((1, 8, 100)))
        else:
            other = chance.randrange(len(changed) + 1)
            changed[at : at + 16] = changed[other : other + 16]
    return bytes(changed)


def mutated_tensors(chance: Random, data: bytes) -> bytes:
    """A safetensors file with another header, another length of it, or other bytes."""
    action = chance.randrange(5)
    if action == 0 or len(data) < 8:
        return mutated_bytes(chance, data)
    length = struct.unpack("<Q", data[:8])[0]
    header, tensors = data[8 : 8 + length], data[8 + length :]
    if action == 1:
        length = chance.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + tensors
    if action == 2:
        return data[:8] + header + mutated_bytes(chance, tensors)
    document = json.loads(header)
    if chance.random() < 0.3:
        document = with_scalars(chance, document)
    text = mutated_json(chance, document).encode("utf-8", "surrogatepass")
    if chance.random() < 0.3:
        tensors = tensors[: chance.randrange(len(tensors) + 1)]
    return struct.pack("<Q", len(text)) + text + tensors


def with_scalars(chance: Random, document: Any) -> Any:
    """A header whose metadata of ours is mutated, as a text of JSON inside JSON."""
    metadata = document.get("__metadata__", {})
    if "qkvmill" in metadata:
        metadata["qkvmill"] = mutated_json(chance, json.loads(metadata["qkvmill"]))
    return document


def matching(chance: Random, export: Path, path: Path) -> None:
    """Let the manifest say of a mutated file what the file says of itself, where that is JSON."""
    data = path.read_bytes()
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        names = {"F32": "float32", "F16": "float16", "I32": "int32", "I64": "int64"}
        tensors = {
            name: {"dtype": names.get(entry["dtype"], entry["dtype"]), "shape": entry["shape"]}
            for name, entry in header.items()
            if name != "__metadata__"
        }
        document = json.loads((export / "manifest.json").read_text("utf-8"))
        for entry in document["files"]:
            if entry["name"] == path.relative_to(export).as_posix():
                entry |= {"tensors": tensors, "bytes": len(data)}
        (export / "manifest.json").unlink()  # it may be a link to the file of the source
        (export / "manifest.json").write_text(json.dumps(document))
    except (OSError, struct.error, *GARBLED, RecursionError):
        return


def read_export(export: Path) -> None:
    """Everything that reads an export; only QkvmillError may come out of any of it."""
    readers: list[Callable[[], object]] = [
        lambda: read_manifest(export),
        lambda: _windows(export),
        lambda: list(open_export(export).batches(7)),
        lambda: _verified(export),
    ]
    for reader in readers:
        try:
            reader()
        except QkvmillError:
            continue


def _windows(export: Path) -> None:
    windows = open_export(export)
    for index in {0, len(windows) - 1, len(windows) // 2, -1}:
        windows[index]
    with pytest.raises(IndexError):
        windows[len(windows)]


def _verified(export: Path) -> None:
    with garbled_is_damaged(export):
        verify(export, lambda _: None)


def mutate_export(chance: Random, sources: list[Path], folder: Path) -> Path:
    """A copy of an export with one or two of its files mutated."""
    source = chance.choice(sources)
    export = folder / "export"
    shutil.rmtree(export, ignore_errors=True)
    shutil.copytree(source, export, copy_function=os.link)
    files = sorted(path for path in export.rglob("*") if path.is_file() and path.name != "run.json")
    first = chance.choice([*[export / "manifest.json"] * len(files), *files])
    second = chance.choice(files)
    for path in [first, second] if chance.random() < 0.3 and second != first else [first]:
        data = path.read_bytes()
        path.unlink()  # it is a link to the file of the source
        if chance.random() < 0.05:
            continue
        if path.name == "manifest.json" and chance.random() < 0.9:
            document = json.loads(data)
            # These say how other files are read; most of the rest is only shown.
            section = chance.choice(("job", "tokens", "windows", "layer", "files"))
            if chance.random() < 0.7:
                change(chance, document[section])
            text = json.dumps(document) if chance.random() < 0.5 else mutated_json(chance, document)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif path.suffix == ".safetensors":
            path.write_bytes(mutated_tensors(chance, data))
            if chance.random() < 0.7:
                matching(chance, export, path)
        else:
            path.write_bytes(mutated_bytes(chance, data))
    return export


def fuzz(check: Callable[[Random], None]) -> None:
    """Call `check` with chances that hypothesis directs, until the time is up."""
    test = settings(
        max_examples=100, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )(given(st.randoms(use_true_random=False))(check))  # fmt: skip
    if text := os.environ.get("QKVMILL_FUZZ_FAILURE"):
        test = reproduce_failure(hypothesis.__version__, text.encode())(test)
    end = time.monotonic() + SECONDS
    for number in count(SEED):
        seed(number)(test)()
        if time.monotonic() > end:
            break


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exports to mutate, a few kB each: full, compact, with every norm, with random windows."""
    folder = tmp_path_factory.mktemp("sources")
    corpus = write_corpus(folder / "corpus", a="a b a c ! 1 2 " * 20, b="d e\n" * 20)
    norms: tuple[Norm, ...] = ("none", "layernorm", "rmsnorm")
    for norm in norms:
        layer = random_layer(d=8, head_dim=2, kv_heads=2, norm=norm, vocabulary_size=900)
        save_layer(folder, f"{norm}.safetensors", layer)
    layer = random_layer(d=8, head_dim=2, norm="rmsnorm", vocabulary_size=900, rotary=2)
    save_layer(folder, "rotary.safetensors", layer)
    features = ("--export", "tokens", "--export", "features", "--export", "qkv")
    compact = ("--artifact", "compact", *features)
    jobs: list[tuple[str, tuple[object, ...]]] = [
        ("none", (*features, "--batch-size", 2, "--shard-size", 9000)),
        ("none", compact),
        ("layernorm", compact),
        ("rmsnorm", (*compact, "--sampling", "random")),
        ("rotary", compact),
    ]
    for number, (name, options) in enumerate(jobs):
        weights = ("--weights", folder / f"{name}.safetensors", "--separator", "none")
        succeed("run", corpus, "--out", folder / str(number), *weights, *LENGTH, *options)
    return [folder / str(number) for number in range(len(jobs))]


@pytest.mark.slow
def test_a_mutated_export_is_an_error_that_is_declared(sources: list[Path], tmp_path: Path) -> None:
    fuzz(lambda chance: read_export(mutate_export(chance, sources, tmp_path)))


@pytest.mark.slow
def test_mutated_weights_are_an_error_that_is_declared(tmp_path: Path) -> None:
    layers = []
    for number, options in enumerate(WEIGHTS):
        save_layer(tmp_path, f"{number}.safetensors", random_layer(d=8, head_dim=2, **options))
        layers.append((tmp_path / f"{number}.safetensors").read_bytes())

    def check(chance: Random) -> None:
        path = tmp_path / "w.safetensors"
        path.write_bytes(mutated_tensors(chance, chance.choice(layers)))
        try:
            load_layer(
                path,
                context_length=chance.choice((1, 16, 17)),
                heads=chance.choice((None, None, 4, 3)),
                positions=chance.choice((None, None, "none", "sinusoidal", "learned")),
            )
        except QkvmillError:
            return

    fuzz(check)


def small_models(folder: Path) -> list[Path]:
    """Folders of models: one file with rotary positions, and shards with learned ones."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=50, hidden_size=8, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=1, intermediate_size=8, max_position_embeddings=32,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0,
            "original_max_position_embeddings": 16,
        },
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=50, hidden_size=8, num_attention_heads=4, num_hidden_layers=1,
        intermediate_size=8, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    BertModel(bert).save_pretrained(folder / "bert", max_shard_size=900)
    return [folder / "llama", folder / "bert"]


@pytest.mark.slow
def test_a_mutated_model_is_an_error_that_is_declared(tmp_path: Path) -> None:
    models = small_models(tmp_path / "models")

    def check(chance: Random) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(chance.choice(models), folder)
        config = folder / "config.json"
        files = sorted(path for path in folder.iterdir() if path.name != "generation_config.json")
        path = config if chance.random() < 0.5 else chance.choice(files)
        data = path.read_bytes()
        if path.suffix == ".json":
            text = mutated_json(chance, json.loads(data))
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(mutated_tensors(chance, data))
        try:
            load_checkpoint(
                folder,
                context_length=chance.choice((1, 16, 33)),
                dtype=chance.choice((torch.float32, torch.float16)),
            )
        except QkvmillError:
            return

    fuzz(check)
