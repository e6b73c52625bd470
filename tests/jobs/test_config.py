from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig
from jobs.errors import ConfigError


def config(**options: Any) -> JobConfig:
    return JobConfig(**{"corpus": (Path("a.txt"),), "out": Path("out"), **options})


def test_the_defaults_are_those_of_the_design() -> None:
    default = config()
    assert default.seeded_widths == (768, 12, 12)
    assert default.window_stride == 1024
    assert (default.tokenizer, default.dtype, default.layout) == (None, "float32", "bhtd")


def test_the_record_fills_in_defaults_and_names_no_place() -> None:
    record = config(heads=6, stride=3).record()
    assert (
        record["d_model"], record["heads"], record["kv_heads"],
        record["positions"], record["vocab_size"], record["stride"],
    ) == (768, 6, 6, "sinusoidal", "encoding", 3)  # fmt: skip
    assert not {"corpus", "out", "tokenizer", "weights", "device", "overwrite"} & record.keys()


def test_the_order_of_exports_does_not_matter() -> None:
    assert config(export=("qkv", "tokens")).record() == config(export=("tokens", "qkv")).record()


def test_random_sampling_draws_one_batch_unless_told() -> None:
    assert config(sampling="random").record()["batches"] == 1
    assert config(sampling="random", batches=7).random_batches == 7


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"corpus": ()}, "no corpus"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"export": ("qkv", "logits")}, "--export logits"),
        ({"batches": 0}, "--batches 0"),
        ({"shard_size": 0}, "--shard-size 0"),
        ({"sampling": "random", "tail": "pad"}, "--tail pad has no effect"),
        ({"vocab_size": "²"}, "--vocab-size ²"),
        ({"vocab_size": "-5"}, "--vocab-size -5"),
        ({"export": ("tokens",), "weights": Path("w")}, "--weights has no effect"),
        ({"export": ("tokens",), "vocab_size": "corpus"}, "--vocab-size has no effect"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        config(**options)
