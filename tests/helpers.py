"""What several tests share: small layers, ids, and the command line called in process."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.commands.main import main
from kernels import combine_c, reference
from kernels.frequencies import inverse_frequencies
from kernels.layer import FirstLayer, Norm
from kernels.rotary import rotary_of

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOK = DATA / "notebook.txt"
GOLDEN = json.loads((ROOT / "tests" / "golden.json").read_text("utf-8"))

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

needs_c = pytest.mark.skipif(
    combine_c.function(64, torch.float32)[0] is None,
    reason=f"no body in C: {combine_c.function(64, torch.float32)[1]}",
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def qkvmill(*arguments: object) -> Result:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Result(status, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Result:
    """Run the command line and insist that it succeeds."""
    result = qkvmill(*arguments)
    assert result.status == 0, result.stderr
    return result


def random_layer(
    *,
    d: int = 64,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int = 16,
    context_length: int = 16,
    vocabulary_size: int = 101,
    norm: Norm = "none",
    positions: bool = True,
    biases: bool = True,
    offset: float = 0.0,
    rotary: int = 0,
    interleaved: bool = False,
    qk_norm: str = "none",
    norm_offset: float = 0.0,
    seed: int = 0,
) -> FirstLayer:
    """A layer of random parameters, float32.

    `offset` is added to E and P. `rotary` values of a head turn, which takes the place of added
    positions; `qk_norm` is of each "head" or of "all" heads together.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    kv_heads = kv_heads or heads
    q, kv = heads * head_dim, kv_heads * head_dim
    turns = rotary_of(inverse_frequencies(100.0, rotary), context_length, 1.25) if rotary else None
    normed = {"none": None, "head": (head_dim, head_dim), "all": (q, kv)}[qk_norm]
    positions = positions and not rotary
    return FirstLayer(
        embedding=draw(vocabulary_size, d) + offset,
        q_weight=draw(q, d) / d**0.5,
        k_weight=draw(kv, d) / d**0.5,
        v_weight=draw(kv, d) / d**0.5,
        q_bias=draw(q) if biases else None,
        k_bias=None,
        v_bias=draw(kv) if biases else None,
        position=draw(context_length, d) + offset if positions else None,
        positions="rope" if turns else "learned" if positions else "none",
        norm=norm,
        norm_weight=1 - norm_offset + draw(d) if norm != "none" else None,
        norm_bias=draw(d) if norm == "layernorm" else None,
        q_norm=1 - norm_offset + draw(normed[0]) if normed else None,
        k_norm=1 - norm_offset + draw(normed[1]) if normed else None,
        norm_offset=norm_offset,
        rotary_cos=turns.cos if turns else None,
        rotary_sin=turns.sin if turns else None,
        rotary_interleaved=interleaved,
        heads=heads,
        kv_heads=kv_heads,
    )


FINISHED = [
    pytest.param(
        {
            "heads": 6, "kv_heads": 2, "head_dim": head_dim, "rotary": rotary,
            "interleaved": interleaved, "qk_norm": qk_norm, "norm": "rmsnorm", "norm_offset": 1.0,
            "positions": False,
        },
        id=f"{name}-{qk_norm}",
    )
    for head_dim, rotary, interleaved, name in (
        (16, 0, False, "still"),
        (16, 16, False, "half-split"),
        (16, 16, True, "interleaved"),
        (11, 4, False, "partial"),
        (11, 6, True, "partial-interleaved"),
        (80, 32, False, "Dh80-partial"),
    )
    for qk_norm in ("none", "head", "all")
]  # fmt: skip
"""Options of random_layer: what is done to q and k after the projection."""


def random_ids(windows: int, context_length: int, vocabulary_size: int = 101) -> Tensor:
    """Ids [W, T] int32 that hold the first and the last row."""
    generator = torch.Generator().manual_seed(1)
    shape = (windows, context_length)
    ids = torch.randint(0, vocabulary_size, shape, generator=generator, dtype=torch.int32)
    ids[0, 0], ids[-1, -1] = vocabulary_size - 1, 0
    return ids


def nan_outputs(layer: FirstLayer, windows: int, context_length: int) -> list[Tensor]:
    """q, k and v to write to, every value NaN so that one left out is seen."""
    return [
        torch.full(
            (windows, heads, context_length, layer.head_dim),
            torch.nan,
            dtype=layer.dtype,
            device=layer.embedding.device,
        )
        for heads in (layer.heads, layer.kv_heads, layer.kv_heads)
    ]


def assert_within_rule(found: list[Tensor], layer: FirstLayer, ids: Tensor) -> None:
    """q, k and v of the layer are written, and within the error rule of kernels/reference.py."""
    exact = reference.project(reference.in_float64(layer), ids)
    torchs = reference.project(layer, ids)
    for name, ours, theirs, truth in zip("qkv", found, torchs, exact, strict=True):
        assert not bool(torch.isnan(ours).any()), f"{name} has values that were never written"
        error = reference.largest_error(ours.cpu(), truth)
        allowed = reference.allowed_error(theirs, truth)
        assert error <= allowed, f"{name}: {error} against {allowed}"


def run_python(code: str) -> list[str]:
    """The command that runs code in a fresh interpreter of the same environment."""
    return [sys.executable, "-c", code]


def write_corpus(folder: Path, **texts: str) -> Path:
    """A folder with a NAME.txt for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


SMALL = ("--device", "cpu", "--context-length", 16, "--d-model", 32, "--heads", 4)
"""Options of a job that takes a fraction of a second."""


def small_export(folder: Path, *options: object) -> Path:
    """An export of three documents with all tensors by tables, in shards of four windows."""
    corpus = write_corpus(
        folder / "corpus",
        a="One fish, two fish, red fish, blue fish.\n" * 20,
        b="小沈阳江西演唱会邀请沈春，\n" * 9,
        c="def f(x):\n    return x + 1\n" * 12,
    )
    out = folder / "export"
    exports = ("--export", "tokens", "--export", "features", "--export", "qkv")
    size = ("--batch-size", 2, "--shard-size", 60_000, "--vocab-size", "corpus")
    succeed("run", corpus, "--out", out, *SMALL, *exports, *size, "--method", "tables", *options)
    return out


def recommit(export: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Make the manifest, after a change to it, and SHA256SUMS agree with the files again."""
    document = json.loads((export / "manifest.json").read_text("utf-8"))
    for entry in document["files"]:
        data = (export / entry["name"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if entry["kind"] == "weights":
            document["layer"]["weights_sha256"] = entry["sha256"]
    change(document)
    (export / "manifest.json").write_text(json.dumps(document), "utf-8")
    names = sorted(["manifest.json", *(entry["name"] for entry in document["files"])])
    hashes = {name: hashlib.sha256((export / name).read_bytes()).hexdigest() for name in names}
    lines = [f"{sha256}  {name}\n" for name, sha256 in hashes.items()]
    (export / "SHA256SUMS").write_text("".join(lines))
