"""Looks at a stranger's safetensors file before the library opens it."""

import json
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from safetensors import safe_open

from exporters.bucket import LOOK_BYTES, Bucket, Place
from exporters.errors import DamageError, ExportError

PlaceT = TypeVar("PlaceT", bound=Path | Bucket)

MAX_HEADER_BYTES = 25 << 20  # the library takes 100 MB, at 10 s and over 1 GiB of memory
MAX_DIMENSIONS = 64
LFS_START = b"version https://git-lfs"

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
DTYPES = {
    "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I32": "int32", "I64": "int64",
    "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header of a safetensors file declares it."""

    dtype: str
    shape: tuple[int, ...]
    first_byte: int = field(default=0, compare=False)  # in the file


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def open_regular(path: Place, buffer: int = LOOK_BYTES) -> BinaryIO:
    """Open a regular file to read; a FIFO or a device is neither opened nor waited for.

    Of an object, `buffer` bytes are asked for at once.

    Raises:
        ExportError: if it is another kind of file, or an object that cannot be read.
        OSError: if it cannot be opened.
    """
    if isinstance(path, Bucket):
        return path.open(buffer)

    def opener(name: str, flags: int) -> int:
        # Should a FIFO take the file's place after the look at it, opening it does not wait.
        return os.open(name, flags | os.O_NONBLOCK)

    if not stat.S_ISREG(path.stat().st_mode):
        raise ExportError(f"{path} is not a regular file")
    return open(path, "rb", opener=opener)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file with the library, for torch.

    Raises:
        SafetensorError: if it is none.
        OSError: if it cannot be opened, also where torch, which maps it, says so in its own way.
    """
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:
        number = re.search(r"unable to .* file .*\((\d+)\)$", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def own_file(root: PlaceT, name: str) -> PlaceT:
    """The place of a file of the export at root.

    Raises:
        ExportError: if links lead it out of root.
    """
    path = root / name
    if isinstance(path, Path) and not Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(str(root))
    ):
        raise ExportError(f"{path} is a link that leads out of the export")
    return path  # type: ignore[return-value]  # of a Path it is one, and so of a Bucket


def read_header(path: Place) -> Header:
    """Read and check the header of a safetensors file, in plain reads.

    The size of the header is bounded, names are unique, and the tensors' bytes follow one another
    without gap or overlap up to the end of the file.

    Raises:
        ExportError: if the file breaks a rule of the format, naming the file and the rule.
        OSError: if the file cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return header_of(path, file, size)


def header_of(path: Place | str, file: BinaryIO, size: int) -> Header:
    """As read_header, of an open file of `size` bytes that messages call `path`."""
    start = file.read(8)
    if start + file.read(len(LFS_START) - 8) == LFS_START:
        raise ExportError(f"{path} only stands for a file of git-lfs; fetch it with git lfs pull")
    file.seek(8)
    if len(start) < 8:
        raise DamageError(f"{path} is not a safetensors file: it has {len(start)} bytes")
    length = struct.unpack("<Q", start)[0]
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise DamageError(
            f"{path} is not a safetensors file: its first 8 bytes announce a header of "
            f"{length} bytes, beyond the file's end or the limit of {MAX_HEADER_BYTES}"
        )
    raw = file.read(length)
    try:
        declared = json.loads(raw.decode(), object_pairs_hook=_unique)
        if not isinstance(declared, dict):
            raise ValueError("it is not an object")
        metadata = _metadata(declared.pop("__metadata__", {}))
        tensors = _tensors(declared, 8 + length, size)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} has a damaged safetensors header: {error}") from error
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


def _tensors(declared: dict[str, Any], data_start: int, size: int) -> dict[str, TensorEntry]:
    data_bytes = size - data_start
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
        needed = _bytes(name, dtype, shape)
        if offsets[1] - offsets[0] != needed:
            raise ValueError(f"{name!r} has {offsets[1] - offsets[0]} bytes, but needs {needed}")
        place = data_start + offsets[0]
        tensors[name] = TensorEntry(DTYPES.get(dtype, dtype), tuple(shape), place)
        stretches.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(stretches):
        if first != end:
            raise ValueError(f"the tensors leave a gap or overlap at byte {end}")
        end = last
    if end != data_bytes:
        raise ValueError(f"the tensors have {end} bytes, but {data_bytes} follow the header")
    return tensors


def _bytes(name: str, dtype: str, shape: list[int]) -> int:
    """The bytes of a tensor, which like each product on the way have to fit 63 bits."""
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    size = ITEM_BYTES[dtype]
    for length in shape:
        size *= length
        if size >= 2**63:
            raise ValueError(f"{name!r} has a shape beyond any file's size")
    return size


def _counts(value: object) -> bool:
    """Whether value is a list of whole numbers of 63 bits, none negative."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
