import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporters.errors import ExportError
from exporters.safefile import TensorEntry, read_header
from exporters.shards import write_tensors


def file_with(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_of_our_own(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(0, 4, dtype=torch.int64)}
    write_tensors(tmp_path, "a.safetensors", tensors, ("key", "value"))
    header = read_header(tmp_path / "a.safetensors")
    assert header.tensors == {
        "a": TensorEntry("float32", (2, 3)),
        "b": TensorEntry("int64", (0, 4)),
    }
    assert header.metadata == {"key": "value"}
    size = (tmp_path / "a.safetensors").stat().st_size
    places = {name: tensor.first_byte for name, tensor in header.tensors.items()}
    assert places == {"a": size - 24, "b": size - 24}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        pytest.param(b"{", b"", "damaged", id="not-json"),
        pytest.param(b"\xff\xfe", b"", "damaged", id="not-utf8"),
        pytest.param([], b"", "not an object", id="list"),
        pytest.param(b'{"a":' * 99999, b"", "damaged", id="deep"),
        pytest.param({"a": entry()}, b"123", "3 follow", id="short-data"),
        pytest.param({"a": entry()}, b"12345", "5 follow", id="long-data"),
        pytest.param({"a": entry(offsets=[4, 8])}, b"12345678", "gap", id="gap"),
        pytest.param({"a": entry(), "b": entry()}, b"1234", "overlap", id="overlap"),
        pytest.param({"a": entry(shape=[2])}, b"1234", "needs 8", id="wrong-size"),
        pytest.param({"a": entry(shape=[-1], offsets=[0, -4])}, b"", "whole", id="negative"),
        pytest.param({"a": entry(shape=[0, 2**70], offsets=[0, 0])}, b"", "whole", id="huge"),
        pytest.param(
            {"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}, b"", "beyond", id="overflow"
        ),
        pytest.param(
            {"a": entry(shape=[1] * 65)}, b"1234", "65 dimensions", id="dimensions"
        ),
        pytest.param({"a": entry(shape=[True])}, b"1234", "whole", id="bool"),
        pytest.param({"a": entry(shape=["1"])}, b"1234", "whole", id="text-shape"),
        pytest.param({"a": entry(dtype="F99")}, b"1234", "F99", id="dtype"),
        pytest.param({"a": {"dtype": "F32"}}, b"1234", "lacks", id="no-shape"),
        pytest.param({"__metadata__": {"a": 1}}, b"", "metadata", id="metadata"),
        pytest.param(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234", "twice", id="name-twice",
        ),
    ],
)  # fmt: skip
def test_broken_rules_are_named(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as error:
        read_header(file_with(tmp_path / "bad.safetensors", header, data))
    assert "bad.safetensors" in str(error.value)


def test_a_header_longer_than_the_file_or_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for length in (100, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ExportError, match="announce"):
            read_header(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 30 << 20))
        file.truncate(40 << 20)
    with pytest.raises(ExportError, match="limit"):
        read_header(path)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ExportError, match="regular file"):
        read_header(tmp_path / "fifo")


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_header_or_an_export_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        with suppress(ExportError):
            read_header(path)
