"""Small models of transformers, and what their first attention function is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AutoModel, AutoModelForCausalLM

from jobs.checkpoints import load_checkpoint
from kernels import direct, reference, tables
from kernels.combine import combine
from kernels.layer import DTYPES, FirstLayer
from kernels.packed import pack
from tests.helpers import nan_outputs

T = 40
VOCABULARY = 97
CPU = torch.device("cpu")


class Recorded(Exception):  # noqa: N818
    """The first attention function was given these."""


def record(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: Any = None, **__: Any
) -> None:
    raise Recorded(query, key, value, scaling)


AttentionInterface.register("record", record)


class KeepFloat64(TorchFunctionMode):
    """Norms and some rotations of transformers are done in float32; the truth must not be."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        narrows = func is Tensor.float or (func is Tensor.to and torch.float32 in args)
        if narrows and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of ids beyond such small vocabularies, and draws bars."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def save_model(folder: Path, config: Any, number: int) -> None:
    """A model of random parameters, in one of three dtypes, as itself or with a head, in shards."""
    torch.manual_seed(number)
    with_head = number % 2 == 1 and config.model_type not in ("distilbert", "gemma3")
    kind = AutoModelForCausalLM if with_head else AutoModel
    model = kind.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.normal_(offset, 0.3)
    dtype = list(DTYPES.values())[number % 3]
    size = {"max_shard_size": 20_000} if number % 4 < 2 else {}
    model.to(dtype).save_pretrained(folder, **size)


def first_attention(folder: Path, dtype: torch.dtype, ids: Tensor) -> tuple[Tensor, ...]:
    """q, k and v that the first attention function of the saved model is given."""
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="record").eval()
    with torch.no_grad(), pytest.raises(Recorded) as recorded:
        model(ids.long())
    return recorded.value.args[:3]


def attention_scale(folder: Path) -> float:
    """What the first attention function of the saved model is told to scale scores by."""
    model = AutoModel.from_pretrained(folder, attn_implementation="record").eval()
    with torch.no_grad(), pytest.raises(Recorded) as recorded:
        model(windows().long())
    scale = recorded.value.args[3]
    return float(recorded.value.args[0].shape[-1] ** -0.5 if scale is None else scale)


@cache
def windows() -> Tensor:
    """ids int32 [3, T], with none that some family takes for padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, VOCABULARY, (3, T), generator=generator, dtype=torch.int32)
    ids[0, 0] = VOCABULARY - 1
    return ids


def by_direct(layer: FirstLayer, ids: Tensor) -> list[Tensor]:
    outputs = nan_outputs(layer, *ids.shape)
    direct.project(pack(layer, CPU), ids, *outputs)
    return outputs


def by_tables(layer: FirstLayer, ids: Tensor) -> list[Tensor]:
    outputs = nan_outputs(layer, *ids.shape)
    built = tables.build(layer, torch.unique(ids).int(), CPU)
    combine(built, built.rows(ids), *outputs)
    return outputs


def assert_as_transformers(folder: Path) -> None:
    """q, k and v of a saved model are within the error rule, in every dtype and by every way."""
    ids = windows()
    with KeepFloat64():
        truth = first_attention(folder, torch.float64, ids)
    for dtype in DTYPES.values():
        theirs = first_attention(folder, dtype, ids)
        layer = load_checkpoint(folder, context_length=T, dtype=dtype)
        assert layer.dtype == dtype
        ours = {
            "reference": reference.project(layer, ids),
            "direct": by_direct(layer, ids),
            "tables": by_tables(layer, ids),
        }
        for way, found in ours.items():
            for name, mine, torchs, true in zip("qkv", found, theirs, truth, strict=True):
                assert mine.shape == true.shape
                assert true.dtype == torch.float64
                error = reference.largest_error(mine, true)
                allowed = reference.allowed_error(torchs.to(dtype), true)
                assert error <= allowed, f"{way}, {dtype}, {name}: {error} against {allowed}"
