"""Looks at a stranger's safetensors file before the library opens it."""

import json
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.errors import ExportError

MAX_HEADER_BYTES = 25 << 20  # the library takes 100 MB, at 10 s and over 1 GiB of memory

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I32": "int32", "I64": "int64"}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header of a safetensors file declares it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file, in plain reads.

    The size of the header is bounded, names are unique, and the tensors' bytes follow one another
    without gap or overlap up to the end of the file.

    Raises:
        ExportError: if the file breaks a rule of the format, naming the file and the rule.
        OSError: if the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ExportError(f"{path} is not a regular file")
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ExportError(f"{path} is not a safetensors file: it has {len(start)} bytes")
        length = struct.unpack("<Q", start)[0]
        if length > min(status.st_size - 8, MAX_HEADER_BYTES):
            raise ExportError(
                f"{path} is not a safetensors file: its first 8 bytes announce a header of "
                f"{length} bytes, beyond the file's end or the limit of {MAX_HEADER_BYTES}"
            )
        raw = file.read(length)
    try:
        declared = json.loads(raw.decode(), object_pairs_hook=_unique)
        if not isinstance(declared, dict):
            raise ValueError("it is not an object")
        metadata = _metadata(declared.pop("__metadata__", {}))
        tensors = _tensors(declared, status.st_size - 8 - length)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} has a damaged safetensors header: {error}") from error
    return Header(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands in it twice")
    return values


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ is not an object of strings")
    return value


def _tensors(declared: dict[str, Any], data_bytes: int) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    stretches = []
    for name, entry in declared.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} lacks dtype, shape or data_offsets")
        dtype, shape, offsets = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name!r} has the dtype {dtype!r}, which is not known here")
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"{name!r} has a shape or offsets that are not whole numbers")
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= length
        if offsets[1] - offsets[0] != size:
            raise ValueError(f"{name!r} has {offsets[1] - offsets[0]} bytes, but needs {size}")
        tensors[name] = TensorEntry(DTYPES.get(dtype, dtype), tuple(shape))
        stretches.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(stretches):
        if first != end:
            raise ValueError(f"the tensors leave a gap or overlap at byte {end}")
        end = last
    if end != data_bytes:
        raise ValueError(f"the tensors have {end} bytes, but {data_bytes} follow the header")
    return tensors


def _counts(value: object) -> bool:
    """Whether value is a list of whole numbers of 63 bits, none negative."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
