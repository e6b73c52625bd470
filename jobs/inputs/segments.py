"""What a file is cut into: segments, each of which can be turned into ids without the others."""

import hashlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 19  # bytes that are read at once, and about what a segment holds
NO_BAD: tuple["BadRecord", ...] = ()


class Readable(Protocol):
    """What the readers of formats need of a stream."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class BadRecord:
    """A record that holds no text: where in its file it stands, and what is wrong with it."""

    place: str  # such as "line 7"
    reason: str


@dataclass(frozen=True)
class TextPiece:
    """A stretch of one document, UTF-8, between two places that no token crosses."""

    data: bytes
    offset: int  # of its first byte in the file
    begins: bool  # whether the document begins with it


@dataclass(frozen=True)
class Lines:
    """Whole lines, a JSON object each."""

    data: bytes
    first: int  # number of the first line, from 1


@dataclass(frozen=True)
class Texts:
    """Whole documents, UTF-8, one after another; and records that are none."""

    data: bytes
    ends: NDArray[np.int64]  # of each document in data
    place: str  # of the first, such as "row 7", for messages
    bad: tuple[BadRecord, ...] = NO_BAD
    replaced: int = 0  # stretches of bytes that were not UTF-8 and are U+FFFD now


@dataclass(frozen=True)
class Ids:
    """Tokens that are there already; documents begin at `starts`, counted from the first of them.

    `begins` says that what comes before stands in another stream, so that a separator may have to
    stand between.
    """

    ids: NDArray[np.uint32]
    starts: NDArray[np.int64]
    begins: bool


Segment = TextPiece | Lines | Texts | Ids


@dataclass(frozen=True)
class ReadSettings:
    """The options by which files are read."""

    text_field: str
    text_errors: str  # "strict" or "replace"
    token_dtype: str | None  # "uint16" or "uint32", of .bin files
    max_record_bytes: int
    cuttable: bool  # whether the tokenizer takes a document in pieces
    end_of_text: int | None
    vocabulary_size: int
    tokenizer: str  # its name, for messages


def read_exactly(stream: Readable | BinaryIO, size: int) -> bytes:
    """`size` bytes, or what is left: streams may give less at a time, segments must not differ."""
    pieces: list[bytes] = []
    while size and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def update(digest: "hashlib._Hash", segment: Segment) -> None:
    """Add what a segment holds to a hash of the segments of its file."""
    parts: list[Any] = []
    match segment:
        case Ids():
            parts = [segment.ids, segment.starts]
        case Texts():
            parts = [segment.data, segment.ends, repr(segment.bad).encode()]
        case TextPiece() | Lines():
            parts = [segment.data]
    for part in parts:
        digest.update(b"%d:" % memoryview(part).nbytes)
        digest.update(part)
