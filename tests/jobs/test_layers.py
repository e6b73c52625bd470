"""A model's folder as --weights, through the command line, against transformers."""

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from exporters.manifest import read_manifest
from exporters.reading import open_export
from jobs.families import FAMILIES
from kernels import reference
from kernels.layer import DTYPES
from tests.helpers import ROOT, qkvmill, run_python, succeed, write_corpus
from tests.jobs.test_families import CASES, made_config
from tests.recorded import VOCABULARY, KeepFloat64, T, first_attention, quiet, save_model

LETTERS = [chr(ord("0") + i) for i in range(VOCABULARY - 6)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Text whose letters are tokens 6 to VOCABULARY - 1: some families take others for padding."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(len(LETTERS), (6 * T,), generator=generator).tolist()
    return write_corpus(tmp_path / "corpus", a="".join(LETTERS[i] for i in drawn))


def save_tokenizer(folder: Path, tokens: int = VOCABULARY) -> None:
    """A tokenizer of letters, as a model's folder holds one."""
    vocabulary = {f"<{i}>": i for i in range(6)}
    vocabulary |= {chr(ord("0") + i): i + 6 for i in range(tokens - 6)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<3>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<2>"}')


def saved(folder: Path, family: str, case: str = "plain", number: int = 0) -> Path:
    changes = CASES[family].get(case, next(iter(CASES[family].values())))
    save_model(folder, made_config(family, changes), number)
    save_tokenizer(folder)
    return folder


def run(model: Path, corpus: Path, out: Path, *options: object) -> None:
    succeed(
        "run", corpus, "--out", out, "--weights", model, "--context-length", T, "--device", "cpu",
        "--batch-size", 1, "--shard-size", "40kB", *options,
    )  # fmt: skip


def assert_as_given_to_attention(model: Path, out: Path) -> None:
    """q, k and v of an export are within the error rule of what the model's attention is given."""
    (windows,) = open_export(out).batches(99)
    dtype = DTYPES[read_manifest(out).job["dtype"]]
    assert len(windows["input_ids"]) > 3
    assert int(windows["input_ids"].min()) >= 6
    with KeepFloat64():
        truth = first_attention(model, torch.float64, windows["input_ids"])
    theirs = first_attention(model, dtype, windows["input_ids"])
    for name, torchs, true in zip("qkv", theirs, truth, strict=True):
        assert windows[name].shape == true.shape
        error = reference.largest_error(windows[name], true)
        assert error <= reference.allowed_error(torchs.to(dtype), true), name


@pytest.mark.parametrize(
    ("family", "number"), [pytest.param(name, i, id=name) for i, name in enumerate(FAMILIES)]
)
def test_an_export_holds_what_the_models_attention_is_given(
    tmp_path: Path, corpus: Path, family: str, number: int
) -> None:
    model = saved(tmp_path / "model", family, number=number)
    dtype = ("--dtype", list(DTYPES)[number % 3])
    run(model, corpus, tmp_path / "direct", *dtype, "--method", "direct")
    run(model, corpus, tmp_path / "tables", *dtype, "--method", "tables")
    compact = ("--artifact", "compact", "--method", "tables")
    run(model, corpus, tmp_path / "compact", *dtype, *compact)
    succeed("expand", tmp_path / "compact", "--out", tmp_path / "expanded", "--device", "cpu")
    for out in ("direct", "compact", "tables"):
        assert_as_given_to_attention(model, tmp_path / out)
        succeed("verify", tmp_path / out, "--sample", 3)
    sums = [(tmp_path / out / "SHA256SUMS").read_bytes() for out in ("tables", "expanded")]
    assert sums[0] == sums[1]
    described = read_manifest(tmp_path / "direct").layer
    assert described is not None
    assert (described["source"], described["family"], described["file"]) == (
        "model", family, "model"
    )  # fmt: skip


def test_the_stored_layer_gives_the_same_windows_as_the_model(tmp_path: Path, corpus: Path) -> None:
    model = saved(tmp_path / "model", "gemma3_text")
    run(model, corpus, tmp_path / "first")
    weights = tmp_path / "first" / "weights.safetensors"
    run(weights, corpus, tmp_path / "second", "--tokenizer", model)
    first, second = (open_export(tmp_path / name)[2] for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_special_token_beyond_the_embedding_is_no_obstacle(tmp_path: Path, corpus: Path) -> None:
    """Published tokenizers name such tokens; no text becomes one."""
    model = saved(tmp_path / "model", "llama")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCABULARY + 1
    run(model, corpus, tmp_path / "out")


def test_another_family_of_equal_tensors_is_another_job(tmp_path: Path, corpus: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    run(model, corpus, tmp_path / "out")
    cut_config(model, model_type="mistral")
    result = qkvmill(
        "run", corpus, "--out", tmp_path / "out", "--weights", model, "--context-length", T,
        "--device", "cpu", "--batch-size", 1, "--shard-size", "40kB",
    )  # fmt: skip
    assert result.status == 1
    assert 'family was "llama", now "mistral"' in result.stderr


def test_what_is_nearly_a_model_is_told_from_one(tmp_path: Path, corpus: Path) -> None:
    model = saved(tmp_path / "model", "llama", number=2)
    export = tmp_path / "export"
    run(model, corpus, export)
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    cache = tmp_path / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    for given, hint in (
        (model / "model.safetensors", f"for the model in {model}, give that folder"),
        (export, f"give its layer, {export}/weights.safetensors"),
        (pointer, "fetch it with git lfs pull"),
        (cache, "give the one in its snapshots"),
        (tmp_path / "meta-llama/Llama-3", "nothing is downloaded"),
    ):
        result = qkvmill("run", corpus, "--out", tmp_path / "out", "--weights", given)
        assert result.status == 1
        assert hint in result.stderr


def test_longer_windows_than_the_model_was_made_for_are_said_aloud(
    tmp_path: Path, corpus: Path
) -> None:
    model = saved(tmp_path / "model", "llama", "dynamic-beyond")
    result = succeed(
        "run", corpus, "--out", tmp_path / "out", "--weights", model, "--context-length", T,
        "--device", "cpu",
    )  # fmt: skip
    assert f"was made for windows of 32 tokens, not {T}" in result.stderr


def test_q_and_k_can_be_had_before_they_turn(tmp_path: Path, corpus: Path) -> None:
    model = saved(tmp_path / "model", "qwen3")
    for name, options in (("turned", ()), ("before", ("--pre-rope",))):
        run(model, corpus, tmp_path / name, *options)
    turned, before = (open_export(tmp_path / name)[1] for name in ("turned", "before"))
    assert torch.equal(turned["v"], before["v"])
    for name in "qk":
        assert torch.equal(turned[name][:, 0], before[name][:, 0])
        assert not torch.equal(turned[name], before[name])
        assert torch.allclose(turned[name].norm(dim=2), before[name].norm(dim=2), rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_plan_needs_no_weights_and_is_what_a_run_does(
    tmp_path: Path, corpus: Path, family: str
) -> None:
    model = saved(tmp_path / "model", family)
    options = (
        corpus, "--out", tmp_path / "out", "--weights", model, "--context-length", T, "--device",
        "cpu", "--artifact", "compact", "--json",
    )  # fmt: skip
    run = succeed("run", *options).json
    for path in model.glob("*.safetensors*"):
        path.unlink()
    plan = succeed("plan", *(option if option != tmp_path / "out" else tmp_path / "other"
                             for option in options)).json  # fmt: skip
    for name in ("tokens", "distinct_tokens", "windows", "method", "method_reason"):
        assert plan[name] == run[name], name
    stored = {"tokens": 0, "weights": 0, "tables": 0}
    for entry in read_manifest(tmp_path / "out").files:
        tensors = load_file(tmp_path / "out" / entry.name)
        stored[entry.kind] += sum(tensor.nbytes for tensor in tensors.values())
    assert stored["weights"] == plan["weight_bytes"]
    assert stored["tables"] == plan["table_bytes"]
    assert [reads["batch"] for reads in plan["reads"]] == [1, 16, 256, 1024]
    assert "holds neither model.safetensors" in plan["obstacle"]


MEASURE = """
import re, sys
from pathlib import Path
from jobs.commands.main import main
status = main(sys.argv[1:])
# Not ru_maxrss, which a process has from the one that started it.
print(re.search("VmHWM:.* ([0-9]+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def test_other_layers_of_a_model_take_no_memory(tmp_path: Path, corpus: Path) -> None:
    """4 GiB of them, in a file of holes."""
    model = saved(tmp_path / "model", "llama", number=2)
    with (model / "model.safetensors").open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
        end = len(data) + (4 << 30)
        header["layers.1.other"] = {
            "dtype": "F32", "shape": [1 << 30], "data_offsets": [len(data), end]
        }  # fmt: skip
        text = json.dumps(header).encode()
        file.seek(0)
        file.write(struct.pack("<Q", len(text)) + text + data)
        file.truncate(8 + len(text) + end)
    command = [
        *run_python(MEASURE), "run", corpus, "--out", tmp_path / "out", "--weights", model,
        "--context-length", T, "--device", "cpu", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) * 1024 < 1 << 30


def test_a_model_is_not_planned_to_be_held_in_float32_too(tmp_path: Path, corpus: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    held = {}
    for dtype in ("float32", "bfloat16"):
        plan = succeed(
            "plan", corpus, "--out", tmp_path / "out", "--weights", model, "--context-length", T,
            "--dtype", dtype, "--export", "features", "--device", "cpu", "--json",
        ).json  # fmt: skip
        held[dtype] = plan["memory_bytes"] - plan["weight_bytes"] - plan["window_bytes"]
    # What is held beside the layer and the windows is the same tokens.
    assert held["bfloat16"] == held["float32"]


def cut_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "change", "options", "status", "culprit"),
    [
        pytest.param("llama", lambda m: None, ("--heads", 3), 2, "--heads 3 does not fit", id="h"),
        pytest.param(
            "llama", lambda m: None, ("--positions", "none"), 2, "--positions has no effect", id="p"
        ),
        pytest.param(
            "gpt2", lambda m: None, ("--pre-rope",), 2, "positions are learned", id="pre-rope"
        ),
        pytest.param(
            "gpt2", lambda m: None, ("--context-length", 65), 1, "positions for 64 tokens",
            id="long-windows",
        ),
        pytest.param(
            "llama", lambda m: save_tokenizer(m, VOCABULARY + 1), (), 2,
            f"has ids up to {VOCABULARY}, more than the {VOCABULARY} rows", id="vocabulary",
        ),
        pytest.param(
            "llama", lambda m: None, ("--tokenizer", "gpt2"), 2, "ids up to 50256, more than",
            id="gpt2",
        ),
        pytest.param(
            "llama", lambda m: (m / "tokenizer.json").unlink(), (), 1, "holds no tokenizer.json",
            id="no-tokenizer",
        ),
        pytest.param(
            "llama", lambda m: (m / "model.safetensors.index.json").write_bytes(b"x"), (), 1,
            "is not JSON", id="index",
        ),
        pytest.param(
            "llama", lambda m: cut_config(m, model_type="mamba"), (), 1, "none of bert, cohere",
            id="family",
        ),
        pytest.param(
            "llama", lambda m: cut_config(m, clip_qkv=8.0), (), 1, "clip_qkv", id="attention-option"
        ),
        pytest.param(
            "llama", lambda m: cut_config(m, rope_parameters={"rope_type": "mrope"}), (), 1,
            "mrope", id="rope-type",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_any_work(
    tmp_path: Path, corpus: Path, family: str, change: Any, options: tuple[object, ...],
    status: int, culprit: str,
) -> None:  # fmt: skip
    model = saved(tmp_path / "model", family)
    change(model)
    length = () if "--context-length" in options else ("--context-length", T)
    result = qkvmill(
        "run", corpus, "--out", tmp_path / "out", "--weights", model, *length, *options
    )
    assert result.status == status, result.stderr
    assert culprit in result.stderr
    assert result.stderr.count("\n") == 1 + result.stderr.count("computing on")
    assert not (tmp_path / "out").exists()
