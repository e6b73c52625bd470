"""What the tests of streams share: ways to compress, and a file read to its end."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import zstandard

from jobs.inputs.files import find_files
from jobs.inputs.opening import FileRead, open_stream

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def quiet(text: str) -> None:
    raise AssertionError(text)


def read(path: object, step: int = 1000) -> bytes:
    """The bytes that a file is read as."""
    (file,) = find_files([str(path)]).files
    pieces = []
    with open_stream(file, FileRead(), quiet) as stream:
        while piece := stream.read(step):
            assert len(piece) <= step
            pieces.append(piece)
        assert stream.read(step) == b""
    return b"".join(pieces)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
