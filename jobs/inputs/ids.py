"""Tokens that are there already: .npy, flat .bin files, and safetensors with input_ids."""

import os
import warnings
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.safefile import TensorEntry, header_of
from jobs.errors import CorpusError
from jobs.inputs.segments import BLOCK, Ids, Readable, ReadSettings, read_exactly

SAFE_DTYPES: dict[str, np.dtype[Any]] = {
    "int32": np.dtype("<i4"), "int64": np.dtype("<i8"), "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"), "I16": np.dtype("<i2"), "U64": np.dtype("<u8"),
}  # fmt: skip
MAX_NPY_HEADER = 1 << 20
NPY_ERRORS = (
    ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError
)  # fmt: skip
"""What numpy raises for a header, which it reads as Python."""


def bin_ids(
    location: str, stream: Readable, settings: ReadSettings, block: int = BLOCK
) -> Iterator[Ids]:
    """A file of nothing but ids, little endian; documents end with the end-of-text token.

    Raises:
        CorpusError: if the ids are no tokens of the tokenizer, or the last is cut.
    """
    name = settings.token_dtype or "uint16"
    if settings.token_dtype is None and settings.vocabulary_size > 1 << 16:
        raise CorpusError(
            f"{location}: {settings.tokenizer} has ids beyond 16 bits; give --token-dtype, or the "
            "--tokenizer that the ids were made with"
        )
    dtype = np.dtype(name).newbyteorder("<")
    yield from documents_of(location, _flat(location, stream, dtype, None, block), settings)


def npy_ids(
    location: str, stream: Readable, settings: ReadSettings, block: int = BLOCK
) -> Iterator[Ids]:
    """An .npy file of one dimension; documents end with the end-of-text token.

    Raises:
        CorpusError: if it holds anything else, or less than it says.
    """
    try:
        shape, dtype = _npy_header(stream)
    except NPY_ERRORS as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{location} could not be read as .npy: {reason}") from error
    if len(shape) != 1 or shape[0] < 0 or dtype.kind not in "iu":
        raise CorpusError(
            f"{location} holds {dtype} of shape {shape}; one row of whole numbers is read"
        )
    yield from documents_of(location, _flat(location, stream, dtype, shape[0], block), settings)
    if stream.read(1):
        raise CorpusError(f"{location} goes on after the {shape[0]} ids that it announces")


def _npy_header(stream: Readable) -> tuple[tuple[int, ...], np.dtype[Any]]:
    reader = cast(Any, _Reader(stream))
    read = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        version = np.lib.format.read_magic(reader)
        if version not in read:
            raise ValueError(f"it is of version {version}")
        shape, _, dtype = read[version](reader)
    return shape, dtype


def safetensors_ids(
    location: str, file: BinaryIO, settings: ReadSettings, base: int, block: int = BLOCK
) -> Iterator[Ids]:
    """The tensor input_ids of a safetensors file; documents begin at its document_starts.

    Where it has none they end with the end-of-text token, as in other files.

    Args:
        base: where in its stream the file's first id stands, for document_starts count from the
            stream's start.

    Raises:
        CorpusError: if it has no such tensor, or starts that lie elsewhere.
    """
    ids, dtype, starts = stream_tensors(location, file)
    count = ids.shape[0]
    begins = None
    if starts is not None:
        begins = _starts(location, file, starts, count, base)
    file.seek(ids.first_byte)
    pieces = _flat(location, file, dtype, count, block)
    if begins is None:
        yield from documents_of(location, pieces, settings)
        return
    if count == 0:
        if len(begins) == 0:
            raise CorpusError(f"{location} is empty; remove it or leave it out")
        yield Ids(np.empty(0, np.uint32), begins, begins=base == 0)
        return
    at = 0
    for piece in pieces:
        stop = at + len(piece)
        low, high = np.searchsorted(begins, [at, stop])
        own = begins[low : len(begins) if stop == count else high] - at
        yield Ids(_checked(location, piece, at, settings), own, begins=at == 0 and base == 0)
        at = stop


def stream_tensors(
    location: str, file: BinaryIO
) -> tuple[TensorEntry, np.dtype[Any], TensorEntry | None]:
    """input_ids in the header of a safetensors file, their dtype, and document_starts if there.

    Raises:
        CorpusError: if the header is damaged, has no row of input_ids, or other document_starts.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = header_of(location, file, size).tensors
    except ExportError as error:
        raise CorpusError(str(error)) from error
    if "input_ids" not in header:
        held = ", ".join(header) or "none"
        raise CorpusError(f"{location} has no tensor input_ids, but {held}")
    ids = header["input_ids"]
    dtype = SAFE_DTYPES.get(ids.dtype)
    if dtype is None or len(ids.shape) != 1:
        raise CorpusError(
            f"{location}: input_ids is {ids.dtype} of shape {list(ids.shape)}; "
            "one row of whole numbers is read"
        )
    starts = header.get("document_starts")
    if starts is not None and (starts.dtype != "int64" or len(starts.shape) != 1):
        raise CorpusError(f"{location}: document_starts is no row of int64")
    return ids, dtype, starts


def _starts(
    location: str, file: BinaryIO, entry: TensorEntry, count: int, base: int
) -> NDArray[np.int64]:
    """Where documents begin, counted from the file's first id."""
    file.seek(entry.first_byte)
    begins = np.frombuffer(read_exactly(file, 8 * entry.shape[0]), "<i8")
    if (begins[1:] < begins[:-1]).any():
        raise CorpusError(f"{location} has document_starts that descend")
    if base and len(begins) and begins[0] == 0:
        raise CorpusError(
            f"{location} begins a stream, but lies beside files of another; give each stream as a "
            "folder of its own"
        )
    own = begins - base
    if not base and len(own) and own[0] == 0 and own[-1] > count:
        raise CorpusError(f"{location} has document_starts beyond its ids")
    within = len(own) == 0 or (begins[0] >= base and own[-1] <= count)
    if not within or (count and not base and (len(own) == 0 or own[0] != 0)):
        raise CorpusError(
            f"{location} goes on with a stream whose earlier files are not given before it; "
            "give the whole folder"
        )
    return own


def _flat(
    location: str, stream: Readable, dtype: np.dtype[Any], count: int | None, block: int
) -> Iterator[NDArray[Any]]:
    """`count` ids, or all that there are, in blocks."""
    size = dtype.itemsize
    left = None if count is None else count * size
    while left is None or left:
        data = read_exactly(stream, block if left is None else min(block, left))
        if left is None and not data:
            break
        if len(data) % size or not data:
            raise CorpusError(f"{location} is cut short: it ends within an id or before its last")
        left = None if left is None else left - len(data)
        yield np.frombuffer(data, dtype)


def documents_of(
    location: str, pieces: Iterator[NDArray[Any]], settings: ReadSettings
) -> Iterator[Ids]:
    """Ids whose documents end with the end-of-text token, which each keeps."""
    at = 0
    ended = True
    for piece in pieces:
        ids = _checked(location, piece, at, settings)
        after = np.flatnonzero(ids[:-1] == settings.end_of_text) + 1
        starts = np.concatenate([[0], after]) if ended else after
        yield Ids(ids, starts.astype(np.int64), begins=at == 0)
        ended = ids[-1] == settings.end_of_text
        at += len(ids)
    if at == 0:
        raise CorpusError(f"{location} is empty; remove it or leave it out")


def _checked(
    location: str, ids: NDArray[Any], at: int, settings: ReadSettings
) -> NDArray[np.uint32]:
    """Ids, the first of which stands at place `at`, as uint32.

    Raises:
        CorpusError: if one is no token of the tokenizer.
    """
    wrong = (ids < 0) | (ids >= settings.vocabulary_size)
    if wrong.any():
        place = int(wrong.argmax())
        raise CorpusError(
            f"{location}: id {int(ids[place])} at place {at + place} is no token of "
            f"{settings.tokenizer}, which has {settings.vocabulary_size}; give the --tokenizer "
            "and the --token-dtype that it was made with"
        )
    return ids.astype(np.uint32)


class _Reader:
    """A stream as numpy reads headers from it: as many bytes as were asked for."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return read_exactly(self._stream, min(size, MAX_NPY_HEADER))
