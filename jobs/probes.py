"""What stands at a place of a file: some of its tokens, and the bytes that they stand for.

Files of text and of JSON lines are entered at any place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from jobs.encode import Encoded, EncodeSettings, encode_segment
from jobs.errors import CorpusError
from jobs.inputs.files import InputFile
from jobs.inputs.lines import BOM
from jobs.inputs.locations import shown
from jobs.inputs.segments import BadRecord, Lines, ReadSettings, Segment, TextPiece, read_exactly
from jobs.tokenizer import Tokenizer

PROBE_BYTES = 128 << 10


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Tokens of a file, at a place or from its start.

    In `bytes` of the file as it is stored stand `tokens`, with a separator before each record, but
    not before the document that a text file is, and `documents`. `taken` are the bytes of the lines
    that begin there, which on average are as many. `ids` and `lengths` are of what was looked at.
    """

    places: int  # of the corpus that it was read for
    looked_at: float  # stored bytes that were encoded
    bytes: float
    taken: float
    tokens: float
    documents: float
    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]  # tokens of the documents that were looked at
    spread: float = 0.0  # how uncertain the tokens of a byte are, where only the start was read
    bad: tuple[BadRecord, ...] = ()
    whole: bool = False  # whether nothing of the file was left out


@dataclass(frozen=True, kw_only=True)
class Prober:
    """How the files of a job are read and encoded; note is told of every new attempt at one."""

    reading: ReadSettings
    encoding: EncodeSettings
    tokenizer: Tokenizer
    note: Callable[[str], None]
    bytes: int = PROBE_BYTES  # that are encoded for each place


def text_at(file: InputFile, stream: BinaryIO, at: int, places: int, prober: Prober) -> Probe:
    """A stretch of a text file, from one character to another."""
    where, size = shown(file.location), stored_size(file)
    stream.seek(at)
    data = read_exactly(stream, prober.bytes)
    if (nul := data.find(b"\0")) >= 0:
        raise CorpusError(f"{where} is binary, not text: byte {at + nul} is NUL")
    if at == 0:
        data = data.removeprefix(BOM)
    first = _characters_begin(data) if at else 0
    stop = len(data) if at + prober.bytes >= size else last_character(data)
    piece = TextPiece(data[first:stop], at + first, begins=False)
    ids = encode_at(where, piece, prober).ids
    held = max(1, stop - first)
    length = round(len(ids) / held * size)
    return Probe(
        places=places,
        looked_at=held,
        bytes=held,
        taken=held,
        tokens=len(ids),
        documents=held / size,
        ids=ids,
        lengths=np.array([length], np.int64),
        whole=size <= prober.bytes,
    )


def _characters_begin(data: bytes) -> int:
    """Where the first character of UTF-8 begins, if one does among the first four bytes."""
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def last_character(data: bytes) -> int:
    """Where the last character of UTF-8 begins, which may not be whole."""
    tail = range(len(data) - 1, max(0, len(data) - 5), -1)
    return next((i for i in tail if data[i] & 0xC0 != 0x80), len(data))


def lines_at(file: InputFile, stream: BinaryIO, at: int, places: int, prober: Prober) -> Probe:
    """The lines that begin within a stretch of a file, to the end of the last of them.

    Every line has the same chance to begin there, however long it is.
    """
    size = stored_size(file)
    expected = min(prober.bytes, size)
    begin = max(0, at - 1)  # the byte before tells whether a line begins with the first
    stream.seek(begin)
    data = read_exactly(stream, at + expected - begin)
    if at:
        skipped = data.find(b"\n") + 1
        data, begin = (data[skipped:] if skipped else b""), begin + skipped
    while data and not data.endswith(b"\n") and len(data) <= prober.reading.max_record_bytes:
        rest = read_exactly(stream, prober.bytes)
        data += rest[: rest.find(b"\n") + 1 or None]
        if not rest:
            break
    taken = len(data)
    lines = Lines(data.removeprefix(BOM) if begin == 0 else data, 1)
    encoded = encode_at(shown(file.location), lines, prober)
    return Probe(
        places=places,
        looked_at=taken,
        bytes=expected,
        taken=taken,
        tokens=len(encoded.ids),
        documents=len(encoded.starts),
        ids=encoded.ids,
        lengths=lengths_of(encoded, prober),
        bad=_placed(encoded.bad, data, begin),
        whole=expected == size,
    )


def _placed(bad: tuple[BadRecord, ...], data: bytes, begin: int) -> tuple[BadRecord, ...]:
    """Bad lines with their places in the file, where their numbers are not known."""
    if not bad or begin == 0:
        return bad
    starts = list(accumulate((len(line) + 1 for line in data.split(b"\n")), initial=begin))
    numbers = [int(record.place.removeprefix("line ")) - 1 for record in bad]
    return tuple(
        replace(record, place=f"the line at byte {starts[number]}")
        for record, number in zip(bad, numbers, strict=True)
    )


def encode_at(where: str, segment: Segment, prober: Prober) -> Encoded:
    encoded = encode_segment(segment, prober.tokenizer, prober.encoding)
    if encoded.problem is not None:
        raise CorpusError(f"{where} {encoded.problem}")
    return encoded


def lengths_of(encoded: Encoded, prober: Prober) -> NDArray[np.int64]:
    """Tokens of the documents of a segment, each with the separator after it."""
    separator = prober.encoding.separator is not None
    return np.diff(encoded.starts, append=len(encoded.ids) + separator)


def stored_size(file: InputFile) -> int:
    if file.bytes is None:
        raise ValueError(f"{shown(file.location)} has no known size")
    return file.bytes
