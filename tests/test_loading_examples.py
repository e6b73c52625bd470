"""The examples that load exports: what they say, against torch, numpy and datasets."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import DataLoader

from exporters.layerfile import save_layer
from exporters.manifest import read_manifest
from exporters.reading import open_export
from kernels.layer import FirstLayer
from kernels.reference import allowed_error, largest_error
from tests.helpers import ROOT, random_layer, run_python, succeed, write_corpus

EXAMPLES = ROOT / "examples"
Run = Callable[..., str]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process; returns what it printed, or raises its SystemExit."""

    def run(name: str, *arguments: object) -> str:
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def functions(name: str) -> dict[str, Any]:
    """What an example defines, without running it."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="imported")


def exported(folder: Path, layer: FirstLayer, *options: object) -> Path:
    """An export of two documents with a layer of its own, T = 16."""
    folder.mkdir(exist_ok=True)
    corpus = write_corpus(folder / "corpus", a="How vexingly quick! " * 20, b="Daft zebras. " * 9)
    save_layer(folder, "own.safetensors", layer)
    out = folder / "own"
    succeed(
        "run", corpus, "--out", out, "--weights", folder / "own.safetensors", "--tokenizer", "gpt2",
        "--context-length", 16, "--device", "cpu", *options,
    )  # fmt: skip
    return out


def grouped(**options: Any) -> FirstLayer:
    sizes = {"d": 48, "heads": 6, "kv_heads": 2, "head_dim": 8, "vocabulary_size": 50257}
    return random_layer(**{**sizes, **options})


@pytest.fixture
def tokens_only(tmp_path: Path) -> Path:
    corpus = write_corpus(tmp_path / "tokens of", a="How vexingly quick! " * 20)
    out = tmp_path / "tokens"
    succeed("run", corpus, "--out", out, "--export", "tokens", "--context-length", 16)
    return out


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A full export in bfloat16 by token, with grouped heads."""
    return exported(tmp_path, grouped(), "--dtype", "bfloat16", "--layout", "bthd")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A full export in float32, with grouped heads."""
    return exported(tmp_path / "plain", grouped())


LOADING = ("attention", "attention_benchmark", "data_loader", "expand_by_hand", "numpy_arrays")


@pytest.mark.parametrize("name", LOADING)
def test_what_is_no_export_ends_in_a_sentence(example: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        example(name, tmp_path / "nothing")
    (line,) = str(ended.value).splitlines()
    assert str(tmp_path / "nothing") in line


@pytest.mark.parametrize("name", LOADING)
def test_without_an_export_its_use_is_shown(example: Run, name: str) -> None:
    with pytest.raises(SystemExit, match=f"python examples/{name}.py"):
        example(name)


@pytest.mark.parametrize(
    ("name", "package", "extras"),
    [("hf_dataset", "datasets", "bench"), ("small_model", "tokenizers", "bench,hf"),
     ("first_layer_scores", "transformers", "bench"),
     ("first_layer_lookup", "transformers", "bench")],
    ids=["hf_dataset", "small_model", "first_layer_scores", "first_layer_lookup"],
)  # fmt: skip
def test_without_a_package_an_example_says_what_has_it(
    example: Run, name: str, package: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        example(name)
    assert re.fullmatch(
        rf".*\b{package}\b.*; pip install 'qkvmill\[{extras}\]' has it", str(ended.value)
    )


@pytest.mark.parametrize("name", [name for name in LOADING if name != "data_loader"])
def test_tokens_alone_end_in_a_sentence(example: Run, tokens_only: Path, name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        example(name, tokens_only)
    (line,) = str(ended.value).splitlines()
    assert str(tokens_only) in line


@pytest.mark.parametrize("name", ["attention", "numpy_arrays"])
def test_what_reads_shards_sends_compact_exports_to_expand(
    example: Run, compact: Path, name: str
) -> None:
    with pytest.raises(SystemExit, match="has no shards of q, k, v; expand it"):
        example(name, compact)


BY_HAND = ("attention", "expand_by_hand", "numpy_arrays")


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def empty(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize("spoil", [lose, cut, empty], ids=["missing", "cut", "empty"])
@pytest.mark.parametrize("file", ["manifest", "values"])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_damaged_export_ends_in_a_sentence(
    example: Run, plain: Path, compact: Path, name: str, file: str, spoil: Callable[[Path], None]
) -> None:
    root = compact if name == "expand_by_hand" else plain
    values = root / "tables.safetensors" if root == compact else min((root / "shards").iterdir())
    spoil(root / "manifest.json" if file == "manifest" else values)
    with pytest.raises(SystemExit) as ended:
        example(name, root)
    (line,) = str(ended.value).splitlines()
    assert line.startswith(f"{root} is not a whole export: ")


@pytest.mark.parametrize("spoil", [lose, cut], ids=["missing", "cut"])
@pytest.mark.parametrize(
    ("name", "more"), [("data_loader", ()), ("attention_benchmark", (1,)), ("hf_dataset", ("to",))],
    ids=["data_loader", "attention_benchmark", "hf_dataset"],
)  # fmt: skip
def test_a_damaged_shard_ends_in_a_sentence_with_what_to_do(
    example: Run, plain: Path, name: str, more: tuple[object, ...], spoil: Callable[[Path], None],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for shard in (plain / "shards").iterdir():
        spoil(shard)
    with pytest.raises(SystemExit) as ended:
        example(name, plain, *more)
    (line,) = str(ended.value).splitlines()
    assert str(plain / "shards") in line
    assert line.endswith(f"run qkvmill verify {plain}")


@pytest.mark.parametrize("name", BY_HAND)
def test_a_newer_format_is_refused_by_name(
    example: Run, plain: Path, compact: Path, name: str
) -> None:
    root = compact if name == "expand_by_hand" else plain
    change_manifest(root, format_version=2)
    with pytest.raises(SystemExit, match=f"{root} has format version 2; 1 is known here"):
        example(name, root)


def change_manifest(root: Path, **entries: Any) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(manifest | entries), "utf-8")


@pytest.mark.parametrize("scale", [None, 1.0], ids=["usual", "one"])
def test_attention_has_the_scale_of_the_model(
    plain: Path, monkeypatch: pytest.MonkeyPatch, example: Run, scale: float | None
) -> None:
    layer = read_manifest(plain).layer or {}
    change_manifest(plain, layer={**layer, "attention_scale": scale})
    monkeypatch.setattr(sys, "argv", ["attention.py", str(plain)])
    found = runpy.run_path(str(EXAMPLES / "attention.py"))["out"][0].double()
    shard = load_file(min((plain / "shards").iterdir()))
    q, k, v = (shard[name][0].double() for name in "qkv")
    k, v = (tensor.repeat_interleave(3, 0) for tensor in (k, v))
    scores = q @ k.mT * (8**-0.5 if scale is None else scale)
    hidden = torch.ones(16, 16, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(2) @ v
    assert float((found - expected).abs().max()) < 1e-5
    square = float(example("numpy_arrays", plain).rpartition(" ")[2])
    assert square == pytest.approx(float(expected.square().mean()), rel=1e-5)


def test_attention_takes_both_layouts(example: Run, export: Path) -> None:
    said = example("attention", export)
    count = len(open_export(export))
    assert said == f"{count} windows in the shard; attention over the first: [1, 6, 16, 8]\n"


@pytest.mark.parametrize("kind", ["full", "compact and padded"])
def test_batches_are_shuffled_and_whole(
    example: Run, export: Path, tmp_path: Path, kind: str
) -> None:
    root = export
    if kind != "full":
        padded = ("--boundaries", "split", "--tail", "pad", "--artifact", "compact")
        root = exported(tmp_path / "padded", grouped(), *padded)
    windows = open_export(root)
    starts = [int(windows[index]["window_start"]) for index in range(len(windows))]
    generator = torch.Generator().manual_seed(0)
    order = torch.cat(list(DataLoader(starts, 4, shuffle=True, generator=generator)))  # type: ignore[arg-type]
    *tensors, last = example("data_loader", root).splitlines()
    assert last == (
        f"{len(starts)} windows in {-(-len(starts) // 4)} batches, "
        f"from the places {order[:8].tolist()} ..."
    )
    assert [f"{name}: {x.dtype} {[4, *x.shape]}" for name, x in windows[0].items()] == tensors


def test_numpy_attention_is_that_of_torch(tmp_path: Path) -> None:
    root = exported(tmp_path, grouped(), "--dtype", "float16")
    numpy = functions("numpy_arrays")
    (shard, scale), theirs = numpy["load_shard"](root), load_file(min((root / "shards").iterdir()))
    assert {name: array.tolist() for name, array in shard.items()} == {
        name: tensor.tolist() for name, tensor in theirs.items()
    }
    windows = zip(*(shard[name] for name in "qkv"), strict=True)
    ours = torch.from_numpy(np.stack([numpy["attend"](*window, scale) for window in windows]))

    def attended(dtype: torch.dtype) -> Tensor:
        q, k, v = (theirs[name].to(dtype) for name in "qkv")
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    exact = attended(torch.float64)
    assert ours.dtype == torch.float32
    assert largest_error(ours, exact) <= allowed_error(attended(torch.float32), exact)


@pytest.mark.parametrize("ml_dtypes", [True, False])
def test_numpy_reads_bfloat16_without_torch(export: Path, ml_dtypes: bool) -> None:
    code = f"""
import runpy, sys
sys.argv = ["numpy_arrays.py", {str(export)!r}]
{"" if ml_dtypes else "sys.modules['ml_dtypes'] = None"}
try:
    runpy.run_path({str(EXAMPLES / "numpy_arrays.py")!r}, run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run(run_python(code), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False"
    if not ml_dtypes:
        (line,) = done.stderr.splitlines()
        assert line == f"{export} is bfloat16, which numpy knows by the package ml_dtypes only"
        return
    assert done.returncode == 0, done.stderr
    shard = load_file(min((export / "shards").iterdir()))
    q, k, v = (shard[name][:1].transpose(1, 2).double() for name in "qkv")
    truth = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    said = re.search(r"\[6, 16, 8\], mean square ([\d.]+)$", done.stdout, re.M)
    assert said is not None
    assert float(said[1]) == pytest.approx(float(truth.square().mean()), rel=1e-4)
    assert f"q: bfloat16 {[len(shard['q']), 6, 16, 8]}" in done.stdout


def test_a_dataset_holds_the_windows(export: Path, tmp_path: Path) -> None:
    without = exported(tmp_path / "without", grouped(), "--export", "qkv")
    code = f"""
import json, runpy, sys
for root in ({str(without)!r}, {str(export)!r}):
    sys.argv = ["hf_dataset.py", root, {str(tmp_path / "made")!r}]
    try:
        runpy.run_path({str(EXAMPLES / "hf_dataset.py")!r}, run_name="__main__")
    except SystemExit as ended:
        print(ended)
from datasets import load_from_disk
made = load_from_disk({str(tmp_path / "made")!r})
print(json.dumps({{name: made[name][:] for name in made.column_names}}))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        run_python(code), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, *said, rows = done.stdout.splitlines()
    assert refused == f"{without} holds no token ids; give qkvmill run --export tokens too"
    assert said[-1] == "input_ids of the first windows: torch.int64 [4, 16]"
    shard = load_file(min((export / "shards").iterdir()))
    names = ("input_ids", "target_ids", "document_ids")
    assert json.loads(rows) == {name: shard[name].tolist() for name in names}


def test_the_benchmark_tells_of_values_and_of_attention(example: Run, export: Path) -> None:
    head, _, *lines = example("attention_benchmark", export, 1).splitlines()
    assert head.startswith("q [8, 6, 16, 8], k and v [8, 2, 16, 8], torch.bfloat16, on ")
    rows = {(line[0], line.split()[1]): [float(x) for x in line.split()[2:]] for line in lines[:6]}
    (batch,) = list(open_export(export).batches(8))[:1]
    for name in "qkv":
        values = batch[name].double().numpy()
        centred = (values - values.mean()) / values.std()
        assert rows[name, "text"] == pytest.approx(
            [
                values.mean(), values.std(), np.abs(values).max(), (centred**4).mean() - 3,
                (np.abs(centred) > 4).mean(),
            ],
            rel=0.01, abs=0.002,
        )  # fmt: skip
        assert rows[name, "randn"][:2] == pytest.approx([0, 1], abs=0.1)
    assert [line.split()[:2] for line in lines[6:]] == [
        ["attention", "text"],
        ["attention", "randn"],
    ]


def test_the_benchmark_measures_what_is_known() -> None:
    benchmark = functions("attention_benchmark")
    coins = torch.tensor([-1.0, 1.0]).repeat(5000)
    assert benchmark["of_values"](coins) == pytest.approx([0, 1, 1, -2, 0], abs=1e-3)
    same = torch.zeros(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    counts = np.arange(2, 10)  # places that a row sees, each alike
    assert benchmark["of_attention"](same, 0.3) == pytest.approx(
        [np.log(counts).mean(), (1 / counts).mean()]
    )


CANCELLING = grouped(norm="layernorm")
CANCELLING.position[:3] = 1e-4 - CANCELLING.embedding[2437]  # type: ignore[index]  # "How"
KINDS = {
    "plain": (grouped(), ()),
    "random": (grouped(), ("--sampling", "random", "--batches", 2)),
    "pad": (grouped(norm="rmsnorm"), ("--tail", "pad")),
    "split-pad": (grouped(norm="layernorm"), ("--boundaries", "split", "--tail", "pad")),
    "no-positions": (grouped(positions=False, norm="layernorm"), ("--boundaries", "split")),
    "rope-bfloat16": (grouped(rotary=8), ("--dtype", "bfloat16", "--layout", "bthd")),
    "interleaved": (grouped(rotary=6, interleaved=True, norm="rmsnorm"), ("--dtype", "float16")),
    "cancelling": (CANCELLING, ("--layout", "bthd")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_expanding_by_hand_gives_the_bits_of_expand(
    example: Run, tmp_path: Path, kind: str
) -> None:
    layer, options = KINDS[kind]
    root = exported(tmp_path, layer, "--artifact", "compact", *options)
    succeed("expand", root, "--out", tmp_path / "full", "--device", "cpu")
    said = example("expand_by_hand", root, tmp_path / "full").splitlines()
    assert said == [
        "q, k and v of window 0: [6, 16, 8] [2, 16, 8] [2, 16, 8]",
        f"q, k and v of {len(open_export(root))} windows have the same bits as in "
        f"{tmp_path / 'full'}",
    ]


def test_a_difference_is_said(example: Run, tmp_path: Path) -> None:
    root = exported(tmp_path, grouped(), "--artifact", "compact")
    full = exported(tmp_path / "other", grouped(seed=1), "--method", "tables")
    with pytest.raises(SystemExit, match=r"window 0: q differs from .* by up to [0-9.]+$"):
        example("expand_by_hand", root, full)
