"""zstd, frame by frame and block by block, as RFC 8878 lays them out.

zstandard's own streams end in silence where a file is cut off, and its decompressor takes no limit
of what one step gives. A block gives 128 KiB at most, so blocks are what it is given.
"""

from collections.abc import Iterator

import zstandard

from jobs.errors import CorpusError
from jobs.inputs.source import Source, cut_off, damaged, something_else

MAX_WINDOW = 128 << 20  # bytes, what the zstd command takes without being told otherwise
MAX_BLOCK = 128 << 10
MAX_HEADER = 18

FRAME = b"\x28\xb5\x2f\xfd"
SKIPPED = range(0x184D2A50, 0x184D2A60)  # the first four bytes of frames that hold no data
RLE, RESERVED = 1, 3
NAME = "zstd"


def zstd_pieces(source: Source) -> Iterator[bytes]:
    """What the frames of a file hold, a block at a time.

    Raises:
        CorpusError: if a frame is damaged, cut off, needs a dictionary or a larger window than
            MAX_WINDOW, or is followed by anything else.
    """
    while magic := source.peek(len(FRAME)):
        if magic == FRAME:
            yield from _frame(source)
        elif int.from_bytes(magic, "little") in SKIPPED:
            source.take(len(magic))
            left = int.from_bytes(_exactly(source, 4), "little")
            while left:
                left -= len(_exactly(source, min(left, MAX_BLOCK)))
        else:
            raise something_else(source, NAME)


def _frame(source: Source) -> Iterator[bytes]:
    """What one frame holds: a header, blocks up to the one that says it is the last, a checksum."""
    after = source.place
    try:
        header, has_checksum = _header(source)
        inflate = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        inflate.decompress(header)
        last = False
        while not last:
            after = source.place
            start = _exactly(source, 3)
            value = int.from_bytes(start, "little")
            last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
            if kind == RESERVED or size > MAX_BLOCK:
                raise damaged(source, after, "what stands there is no block")
            yield inflate.decompress(start + _exactly(source, 1 if kind == RLE else size))
        if has_checksum:
            yield inflate.decompress(_exactly(source, 4))
    except zstandard.ZstdError as error:
        raise damaged(source, after, str(error)) from error
    if not inflate.eof:
        raise damaged(source, after, "its last block is not its end")


def _header(source: Source) -> tuple[bytes, bool]:
    """The header of a frame, and whether a checksum ends the frame."""
    start = source.peek(MAX_HEADER)
    if len(start) <= len(FRAME) or len(start) < zstandard.frame_header_size(start):
        source.take(len(start))
        raise cut_off(source, NAME)
    told = zstandard.get_frame_parameters(start)
    if told.window_size > MAX_WINDOW:
        raise CorpusError(
            f"{source.where} needs a window of {told.window_size} bytes, more than {MAX_WINDOW}, "
            "as zstd --long=28 and above make them; decompress it by hand (zstd -d --long=31)"
        )
    if told.dict_id:
        raise CorpusError(
            f"{source.where} needs a zstd dictionary (number {told.dict_id}); decompress it by hand"
        )
    return source.take(zstandard.frame_header_size(start)), told.has_checksum


def _exactly(source: Source, size: int) -> bytes:
    data = source.take(size)
    if len(data) < size:
        raise cut_off(source, NAME)
    return data
