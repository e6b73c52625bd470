"""gzip, bzip2, xz and zstd: a compressed file's bytes -> those that it holds, piece by piece.

Whatever a file holds, one step gives at most PIECE_BYTES. Several compressed runs, one after the
other, are one file.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from jobs.errors import CorpusError
from jobs.inputs.source import Source, cut_off, damaged, something_else
from jobs.inputs.zstd import MAX_WINDOW, zstd_pieces

PIECE_BYTES = 1 << 20
FEED_BYTES = 1 << 16
XZ_MEMORY = MAX_WINDOW + (32 << 20)  # bytes: the window, and what else its decoder needs
START_BYTES = 10
"""So many bytes tell how a file is compressed."""

BOMB_BYTES = 64 << 20
BOMB_TIMES = 1000
"""Text shrinks to a tenth; a file that shrank to a thousandth may be made to fill a disk."""


class Decompressor(Protocol):
    """What the modules bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """A decompressor of the module zlib, as those of bz2 and lzma are."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length  # then there may be more without more input
        return piece


@dataclass(frozen=True)
class Compression:
    """A way to compress: its name in messages, how its files begin, and how they are read."""

    name: str
    start: re.Pattern[bytes]
    pieces: Callable[[Source], Iterator[bytes]]


def _pieces_by(
    name: str, start: "re.Pattern[bytes]", make: Callable[[], Decompressor], padding: int = 0
) -> Compression:
    """A compression that a decompressor of the standard library reads, run after run.

    Args:
        padding: zeros between runs and after the last come in multiples of so many.
    """

    def pieces(source: Source) -> Iterator[bytes]:
        while source.peek(1):
            if not start.match(source.peek(START_BYTES)):
                raise something_else(source, name)
            inflate = make()
            while not inflate.eof:
                begun = source.place
                data = source.take(FEED_BYTES) if inflate.needs_input else b""
                if not data and inflate.needs_input:
                    raise cut_off(source, name)
                try:
                    yield inflate.decompress(data, PIECE_BYTES)
                except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                    raise damaged(source, begun, str(error)) from error
            source.give_back(inflate.unused_data)
            while padding and source.peek(padding) == bytes(padding):
                source.take(padding)

    return Compression(name, start, pieces)


COMPRESSIONS = {
    "gz": _pieces_by("gzip", re.compile(rb"\x1f\x8b\x08"), _Gzip),
    "bz2": _pieces_by(
        "bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL), bz2.BZ2Decompressor
    ),
    "xz": _pieces_by(
        "xz",
        re.compile(rb"\xfd7zXZ\x00"),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY),
        padding=4,
    ),
    "zst": Compression(
        "zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), zstd_pieces
    ),
}  # fmt: skip


def compression_of(start: bytes) -> str | None:
    """How a file is compressed that begins with `start`; None where it is not."""
    return next((name for name, kind in COMPRESSIONS.items() if kind.start.match(start)), None)


def inflated(source: Source, compression: str) -> Generator[bytes, None, None]:
    """What a compressed file holds, in pieces of at most PIECE_BYTES.

    Raises:
        CorpusError: if it is not compressed in this way, damaged, cut off, followed by anything
            else, or holds so much more than its size that it may be made to fill a disk.
    """
    kind = COMPRESSIONS[compression]
    if not kind.start.match(source.peek(START_BYTES)):
        raise CorpusError(
            f"{source.where} is named .{compression} but is not {kind.name}; give it the name of "
            "what it is"
        )
    size = 0
    for piece in kind.pieces(source):
        size += len(piece)
        if size > BOMB_BYTES and size > BOMB_TIMES * source.place:
            raise CorpusError(
                f"{source.where} holds more than {BOMB_TIMES} times its size after byte "
                f"{source.place}, as files do that are made to fill a disk; decompress it by hand "
                "if that is meant"
            )
        if piece:
            yield piece
