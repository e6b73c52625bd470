"""Text files: a document each, cut where no token can cross."""

import codecs
from collections.abc import Iterator

from jobs.errors import CorpusError
from jobs.inputs.segments import BLOCK, Readable, ReadSettings, TextPiece, read_exactly
from jobs.tokenizer import last_safe_cut

# What stands between two places where it can be cut has to be encoded whole, and a million
# characters can take 1.4 s and 80 MB. No text of people comes near; 10 GB of "a" would.
LONGEST = 1 << 24
REACH = 1 << 8  # bytes, from the end, that are searched for a cut at first
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes that begin no character


def text_pieces(
    location: str, stream: Readable, settings: ReadSettings, block: int = BLOCK
) -> Iterator[TextPiece]:
    """The document of a text file in pieces of about `block` bytes, without a leading BOM.

    Raises:
        CorpusError: if it has no text, is binary (holds a NUL byte), or has a stretch of more than
            LONGEST bytes that cannot be cut.
    """
    held = bytearray()
    offset = 0  # of held in the file
    begins, enough = True, block
    while data := read_exactly(stream, block):
        if (nul := data.find(b"\0")) >= 0:
            place = offset + len(held) + nul
            raise CorpusError(f"{location} is binary, not text: byte {place} is NUL")
        if begins and not held and not offset and data.startswith(codecs.BOM_UTF8):
            data = data[len(codecs.BOM_UTF8) :]
            offset = len(codecs.BOM_UTF8)
        held += data
        if len(held) < enough:
            continue
        cut = byte_cut(held) if settings.cuttable else 0
        if cut:
            yield TextPiece(bytes(held[:cut]), offset, begins)
            offset, begins = offset + cut, False
            del held[:cut]
        if len(held) > LONGEST:
            raise CorpusError(_too_long(location, offset, settings))
        # Where no cut was found the next search waits for twice the text, so that all the searches
        # together stay linear.
        enough = block if cut else min(2 * len(held), LONGEST + 1)
    if begins and not held:
        raise CorpusError(f"{location} is empty; remove it or leave it out")
    if held:
        yield TextPiece(bytes(held), offset, begins)


def byte_cut(data: bytes | bytearray) -> int:
    """The last place in UTF-8 where cutting changes no token, or 0."""
    # Searched from the end in growing stretches: a cut is seldom far.
    reach = REACH
    while True:
        # Half a character at the start, which may be white space, is left out. Other bytes that are
        # not UTF-8 become halves of surrogates, which are no letters, and the same bytes again.
        tail = data[-reach:].lstrip(CONTINUATION).decode("utf-8", "surrogateescape")
        if cut := last_safe_cut(tail):
            return len(data) - len(tail[cut:].encode("utf-8", "surrogateescape"))
        if reach >= len(data):
            return 0
        reach *= 8


def _too_long(location: str, offset: int, settings: ReadSettings) -> str:
    if settings.cuttable:
        return (
            f"{location} holds, from byte {offset} on, {LONGEST:,} bytes without a place to cut "
            "them, such as a line's end before a letter or a space between words; break that line"
        )
    return (
        f"{location} holds more than {LONGEST:,} bytes, and {settings.tokenizer} cannot be given a "
        "document in parts, for its tokens may cross any place; split the document"
    )
