"""Tensors -> one safetensors file, whole, hashed while it is written, the same bytes every time."""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.errors import ExportError
from exporters.files import HASH_BLOCK, FileRecord, whole_file

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.int64: "int64",
}
FORMAT_NAMES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""dtype -> its name in a file, in the order in which the library lays tensors out."""


def write_tensors(
    root: Path, name: str, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None
) -> FileRecord:
    """Write CPU tensors to root/name, without copying those that are contiguous.

    The bytes are those of the safetensors library. They are written here so that a second thread
    can hash them from memory meanwhile, instead of reading the file again, and so that a full disk
    is an OSError with its reason.

    Raises:
        ExportError: if the file cannot be written, with the path and the reason.
    """
    pieces = _pieces(tensors, metadata)
    try:
        with (
            whole_file(root, name) as part,
            part.open("wb", buffering=0) as file,
            ThreadPoolExecutor(1) as pool,
        ):
            digest = pool.submit(_sha256, pieces)
            for piece in pieces:
                # One write takes 2 GB at most, and may take less than it is given.
                done = 0
                while done < len(piece):
                    done += file.write(piece[done:])
            sha256 = digest.result()
    except OSError as error:
        raise ExportError(f"{root / name} could not be written: {error.strerror}") from error
    return FileRecord(name, sum(map(len, pieces)), sha256)


def record_of(
    name: str, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None
) -> FileRecord:
    """The record of the file that write_tensors would write."""
    pieces = _pieces(tensors, metadata)
    return FileRecord(name, sum(map(len, pieces)), _sha256(pieces))


def _pieces(tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None) -> list[memoryview]:
    """The bytes of a safetensors file: its header, then the tensors by dtype and name."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict([metadata])}
    pieces = []
    end = 0
    order = list(FORMAT_NAMES)
    for name, tensor in sorted(tensors.items(), key=lambda t: (order.index(t[1].dtype), t[0])):
        flat = tensor.detach().contiguous().reshape(-1)
        begin, end = end, end + flat.nbytes
        header[name] = {
            "dtype": FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        pieces.append(flat.view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(struct.pack("<Q", len(text)) + text), *pieces]


def _sha256(pieces: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        for begin in range(0, len(piece), HASH_BLOCK):
            digest.update(piece[begin : begin + HASH_BLOCK])
    return digest.hexdigest()
