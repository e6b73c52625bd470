"""Tensors -> one safetensors file, whole, hashed while it is written, the same bytes every time."""

import hashlib
import json
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.files import FileRecord, whole_file, write_all

Shape = tuple[torch.dtype, tuple[int, ...]]

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}
FORMAT_NAMES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}
"""dtype -> its name in a file, in the order in which the library lays tensors out."""

AHEAD = 3  # pieces that may still be hashed while the next is made: a maker needs AHEAD + 1 buffers


def write_tensors(
    root: Path, name: str, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None
) -> FileRecord:
    """Write CPU tensors to root/name, without copying those that are contiguous.

    Raises:
        ExportError: if the file cannot be written, with the path and the reason.
    """
    declared, pieces = _whole(tensors)
    return write_pieces(root, name, declared, pieces, metadata)


def write_pieces(
    root: Path,
    name: str,
    declared: Mapping[str, Shape],
    pieces: Iterable[Tensor],
    metadata: tuple[str, str] | None = None,
) -> FileRecord:
    """Write tensors to root/name from pieces that are made while they are written.

    The bytes are those of the safetensors library, which takes whole tensors only. A second thread
    hashes each piece from memory, instead of reading the file again; and a full disk is an OSError
    with its reason.

    Args:
        declared: dtype and shape of each tensor.
        pieces: contiguous CPU tensors whose bytes, one after the other, are those of the tensors in
            the order of `file_order`. A piece may be changed once AHEAD others were made after it.

    Raises:
        ExportError: if the file cannot be written, with the path and the reason.
        ValueError: if the pieces have other bytes than what was declared.
    """
    header = _header(declared, metadata)
    digest = hashlib.sha256(header)
    size = len(header)
    hashing: deque[Future[None]] = deque()
    with (
        whole_file(root, name) as file,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as pool,
    ):
        write_all(file, header)
        for piece in pieces:
            view = _bytes(piece)
            hashing.append(pool.submit(digest.update, view))
            write_all(file, view)
            size += len(view)
            while len(hashing) > AHEAD:
                hashing.popleft().result()
        for future in hashing:
            future.result()
        if size != len(header) + sum(bytes_of(*shape) for shape in declared.values()):
            raise ValueError(f"{name}: the pieces have {size} bytes, not what was declared")
    return FileRecord(name, size, digest.hexdigest())


def record_of(
    name: str, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None
) -> FileRecord:
    """The record of the file that write_tensors would write."""
    declared, pieces = _whole(tensors)
    header = _header(declared, metadata)
    digest, size = hashlib.sha256(header), len(header)
    for piece in pieces:
        digest.update(_bytes(piece))
        size += piece.nbytes
    return FileRecord(name, size, digest.hexdigest())


def file_order(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """The names of tensors in the order in which they stand in a file: by dtype, then by name."""
    order = list(FORMAT_NAMES)
    return sorted(dtypes, key=lambda name: (order.index(dtypes[name]), name))


def bytes_of(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return dtype.itemsize * prod(shape)


def _whole(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Shape], list[Tensor]]:
    """What tensors are, and they themselves as pieces."""
    declared = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    names = file_order({name: dtype for name, (dtype, _) in declared.items()})
    return declared, [tensors[name].detach().contiguous() for name in names]


def _header(declared: Mapping[str, Shape], metadata: tuple[str, str] | None) -> bytes:
    """The bytes of a file before its tensors.

    There is at most one metadata key: the library writes two or more in random order
    (huggingface/safetensors issue 584), and the bytes here are to be the library's.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict([metadata])}
    end = 0
    for name in file_order({name: dtype for name, (dtype, _) in declared.items()}):
        dtype, shape = declared[name]
        begin, end = end, end + bytes_of(dtype, shape)
        header[name] = {
            "dtype": FORMAT_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(piece: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    if piece.numel() == 0:  # whose stride may be 0
        return memoryview(b"")
    return piece.reshape(-1).view(torch.uint8).numpy().data
