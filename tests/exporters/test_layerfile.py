import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from exporters.errors import WeightsError
from exporters.layerfile import load_layer, save_layer
from kernels.layer import ANGLES, DTYPES, FirstLayer, Norm, rotary_table
from kernels.positions import sinusoidal
from tests.helpers import random_layer


def assert_same(first: FirstLayer, second: FirstLayer) -> None:
    assert first.tensors().keys() == second.tensors().keys()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
    for name in ("heads", "kv_heads", "norm", "positions", "eps", "embedding_scale"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_a_layer_reads_back_as_it_was_written(tmp_path: Path, norm: Norm, dtype: str) -> None:
    layer = random_layer(norm=norm, kv_heads=2).to(DTYPES[dtype])
    save_layer(tmp_path, "w.safetensors", layer)
    assert_same(layer, load_layer(tmp_path / "w.safetensors", context_length=16))


def test_absent_tensors_stay_absent(tmp_path: Path) -> None:
    layer = random_layer(positions=False, biases=False)
    save_layer(tmp_path, "w.safetensors", layer)
    assert_same(layer, load_layer(tmp_path / "w.safetensors", context_length=999))


def plain(tmp_path: Path, scalars: Any = None, **changes: Tensor | None) -> Path:
    """A file as someone without our code would write it with save_file."""
    tensors = {
        "embedding.weight": torch.randn(9, 8),
        "q_proj.weight": torch.randn(8, 8),
        "k_proj.weight": torch.randn(4, 8),
        "v_proj.weight": torch.randn(4, 8),
    }
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    text = scalars if isinstance(scalars, str) else json.dumps(scalars)
    path = tmp_path / "plain.safetensors"
    save_file(tensors, path, metadata=None if scalars is None else {"qkvmill": text})
    return path


def test_a_plain_file_takes_its_heads_from_the_options(tmp_path: Path) -> None:
    layer = load_layer(plain(tmp_path), context_length=4, heads=4, kv_heads=2)
    assert (layer.heads, layer.kv_heads, layer.norm, layer.positions) == (4, 2, "none", "none")


def test_learned_positions_are_cut_to_the_context_length(tmp_path: Path) -> None:
    path = plain(tmp_path, {"heads": 4, "kv_heads": 2}, position__weight=torch.randn(6, 8))
    layer = load_layer(path, context_length=4)
    assert layer.positions == "learned"
    assert layer.position is not None
    assert tuple(layer.position.shape) == (4, 8)


def test_positions_can_be_asked_for_or_left_out(tmp_path: Path) -> None:
    path = plain(tmp_path, {"heads": 4, "kv_heads": 2}, position__weight=torch.randn(6, 8))
    layer = load_layer(path, context_length=7, positions="sinusoidal")
    assert layer.position is not None
    assert torch.equal(sinusoidal(7, 8), layer.position)
    assert load_layer(path, context_length=7, positions="none").position is None
    layer = load_layer(path, context_length=7, positions="rope")
    assert layer.position is None
    assert layer.rotary is not None
    assert torch.equal(rotary_table(7, 2).sin, layer.rotary.sin)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("qk_norm", ["none", "head", "all"])
def test_what_is_done_to_q_and_k_comes_back(
    tmp_path: Path, qk_norm: str, interleaved: bool
) -> None:
    layer = random_layer(
        kv_heads=2, rotary=6, interleaved=interleaved, qk_norm=qk_norm, norm="rmsnorm",
        norm_offset=1.0,
    ).to(torch.bfloat16)  # fmt: skip
    save_layer(tmp_path, "w.safetensors", layer)
    back = load_layer(tmp_path / "w.safetensors", context_length=9)
    assert (back.positions, back.qk_norm, back.norm_offset) == ("rope", qk_norm, 1.0)
    assert back.rotary is not None
    assert layer.rotary is not None
    assert back.rotary.interleaved == interleaved
    assert torch.equal(layer.rotary.cos[:9], back.rotary.cos)
    for name in layer.tensors().keys() - set(ANGLES):
        assert torch.equal(layer.tensors()[name], back.tensors()[name])


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        pytest.param(lambda t: plain(t), {}, "give --heads", id="no-heads"),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2}), {"heads": 2}, "--heads 2", id="heads"
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2}), {"d_model": 9}, "--d-model 9", id="d"
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 4}), {}, "k_proj.weight has shape", id="kv"
        ),
        pytest.param(lambda t: plain(t, {"heads": 4}), {}, "give --kv-heads", id="gqa"),
        pytest.param(
            lambda t: plain(t, q_proj__weight=None), {"heads": 4}, "lacks the tensor q_proj", id="q"
        ),
        pytest.param(
            lambda t: plain(t, wte__weight=torch.ones(2, 2)), {"heads": 4}, "'wte.weight'", id="wte"
        ),
        pytest.param(
            lambda t: plain(t, embedding__weight=torch.full((9, 8), torch.nan)),
            {"heads": 4}, "embedding.weight holds NaN", id="nan",
        ),
        pytest.param(
            lambda t: plain(t, v_proj__weight=torch.full((4, 8), torch.inf)),
            {"heads": 4}, "v_proj.weight holds NaN or infinity", id="infinity",
        ),
        pytest.param(
            lambda t: plain(t, q_proj__weight=torch.zeros(8, 8, dtype=torch.int32)),
            {"heads": 4}, "q_proj.weight is int32", id="int32",
        ),
        pytest.param(
            lambda t: plain(t, q_proj__weight=torch.zeros(8, 8, dtype=torch.float16)),
            {"heads": 4}, "mixes the dtypes float16, float32", id="mixed",
        ),
        pytest.param(
            lambda t: plain(t, embedding__weight=torch.tensor(1.0)),
            {"heads": 4}, "embedding.weight is not a matrix", id="scalar",
        ),
        pytest.param(
            lambda t: plain(t, norm__weight=torch.ones(8)),
            {"heads": 4, "kv_heads": 2}, "layernorm or rmsnorm", id="norm-kind",
        ),
        pytest.param(
            lambda t: plain(t, position__weight=torch.ones(3, 8)),
            {"heads": 4, "kv_heads": 2}, "positions for 3 tokens", id="short-positions",
        ),
        pytest.param(
            lambda t: plain(t), {"heads": 4, "positions": "learned"}, "was learned", id="learned"
        ),
        pytest.param(lambda t: plain(t, "nonsense"), {}, "not JSON", id="metadata-text"),
        pytest.param(lambda t: plain(t, [1]), {}, "not a JSON object", id="metadata-list"),
        pytest.param(lambda t: plain(t, {"heads": 0}), {}, "heads = 0", id="metadata-heads"),
        pytest.param(lambda t: plain(t, {"eps": -1}), {}, "eps = -1", id="metadata-eps"),
        pytest.param(lambda t: plain(t, {"eps": 10**400}), {}, "eps = 1000", id="metadata-huge"),
        pytest.param(lambda t: plain(t, '{"eps": NaN}'), {}, "eps = nan", id="metadata-nan"),
        pytest.param(
            lambda t: plain(t, {"positions": "none"}, position__weight=torch.ones(9, 8)),
            {"heads": 4, "kv_heads": 2}, "its metadata says none", id="positions-none",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2, "positions": "rope"},
                            rotary__cos=torch.ones(3, 1), rotary__sin=torch.ones(3, 1)),
            {}, "positions for 3 tokens", id="short-rotary",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2}, rotary__cos=torch.ones(9, 1)),
            {}, "does not fit rotary", id="half-rotary",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2}, rotary__cos=torch.ones(9, 2),
                            rotary__sin=torch.ones(9, 2)),
            {}, "R at most the head width 2", id="wide-rotary",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2},
                            rotary__cos=torch.ones(9, 1, dtype=torch.float16)),
            {}, "rotary.cos is not float32", id="half-precision-rotary",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 4, "kv_heads": 2}, q_norm__weight=torch.ones(2)),
            {}, "q_norm.weight and k_norm.weight have shapes [[2]]", id="one-head-norm",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 1, "positions": "rope"}, q_proj__weight=torch.ones(9, 0)),
            {}, "q_proj.weight is not a matrix with rows", id="empty-q",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 1, "positions": "rope"}, q_proj__weight=torch.tensor(1.0)),
            {}, "q_proj.weight is not a matrix with rows", id="scalar-q",
        ),
        pytest.param(
            lambda t: plain(t, {"heads": 1, "positions": "rope"}, q_proj__weight=torch.ones(9, 1)),
            {}, "q_proj.weight has 1 columns, but embedding.weight 8", id="narrow-q",
        ),
        pytest.param(
            lambda t: plain(t, {"rotary_interleaved": 1}), {}, "rotary_interleaved = 1",
            id="metadata-interleaved",
        ),
        pytest.param(lambda t: plain(t, {"norm": "batch"}), {}, "norm = 'batch'", id="norm"),
        pytest.param(lambda t: plain(t, {"colour": 1}), {}, "colour = 1", id="unknown-key"),
        pytest.param(lambda t: t, {}, "is not a regular file", id="folder"),
        pytest.param(lambda t: t / "none", {}, "is not there; nothing is downloaded", id="missing"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], reason: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(WeightsError) as error:
        load_layer(path, context_length=options.pop("context_length", 4), **options)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pt"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"w": Bomb()}, path)
    with pytest.raises(WeightsError, match="is a pickle"):
        load_layer(path, context_length=4)
    assert not (tmp_path / "exploded").exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = plain(tmp_path, {"heads": 4, "kv_heads": 2})
    data = path.read_bytes()
    length, target = int.from_bytes(data[:8], "little"), 0x0480
    header = data[8 : 8 + length] + b" " * (target - length)
    path.write_bytes(target.to_bytes(8, "little") + header + data[8 + length :])
    assert path.read_bytes().startswith(b"\x80\x04")
    assert load_layer(path, context_length=4).heads == 4
