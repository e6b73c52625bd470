"""JSON lines: whole lines in blocks, none longer than a limit."""

from collections.abc import Iterator

import numpy as np

from jobs.inputs.segments import BLOCK, BadRecord, Lines, Readable, Texts, read_exactly

BOM = b"\xef\xbb\xbf"


def line_blocks(stream: Readable, most: int, block: int = BLOCK) -> Iterator[Lines | Texts]:
    """Whole lines in blocks; a line of more than `most` bytes is a bad record instead."""
    held = bytearray()
    first = 1  # number of the first line of held
    dropping = False  # the rest of a line that is too long
    start = True
    while data := read_exactly(stream, block):
        if start and data.startswith(BOM):
            data = data[len(BOM) :]
        start = False
        if dropping:
            if (end := data.find(b"\n")) < 0:
                continue
            data, dropping, first = data[end + 1 :], False, first + 1
        held += data
        end = held.rfind(b"\n", max(0, len(held) - len(data))) + 1
        if end:
            yield Lines(bytes(held[:end]), first)
            first += held.count(b"\n", 0, end)
            del held[:end]
        if len(held) > most:
            yield bad_line(first, most)
            dropping = True
            held.clear()
    if held:
        yield Lines(bytes(held), first)


def bad_line(number: int, most: int) -> Texts:
    """A line that is too long, as a segment of no document."""
    return Texts(b"", np.empty(0, np.int64), "", (too_long(number, most),))


def too_long(number: int, most: int) -> BadRecord:
    """What is said of a record of more than `most` bytes."""
    return BadRecord(f"line {number}", f"has more than the {most:,} bytes of --max-record-bytes")
