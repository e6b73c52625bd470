"""Token ids -> the pieces of text that people see: each a whole number of characters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.printable import printable
from jobs.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what decoders put for bytes that are no character yet
MOST_PARTS = 8  # tokens of one piece; a character has four bytes at most


@dataclass(frozen=True)
class Piece:
    """Tokens that make up a text together: one, or those that share a character.

    Control characters and what turns the order of text are shown as escapes.
    """

    ids: tuple[int, ...]
    text: str


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """The pieces of a text's ids, in order.

    Each is decoded behind the one before it, since some decoders drop a space at the beginning. An
    id that is no token of the tokenizer is a piece that says so.
    """
    found: list[Piece] = []
    before: list[int] = []
    waiting: list[int] = []
    for place, number in enumerate(ids):
        waiting.append(number)
        text = _text_behind(tokenizer.decode, before, waiting)
        if text is None:
            found += [Piece((i,), f"[{i}]") for i in waiting]
            before, waiting = [], []
        elif not text.endswith(UNFINISHED) or len(waiting) == MOST_PARTS or place == len(ids) - 1:
            found.append(Piece(tuple(waiting), printable(text)))
            before, waiting = waiting, []
    return found


def token_text(tokenizer: Tokenizer, number: int) -> str:
    """The text of one token by itself; [id] where there is none."""
    text = _text_behind(tokenizer.decode, [], [number])
    return f"[{number}]" if text is None else visible(printable(text))


def labels(parts: Sequence[Piece]) -> list[str]:
    """A label for each token: its piece's text, numbered where tokens share a character."""
    found = []
    for piece in parts:
        count = len(piece.ids)
        text = visible(piece.text)
        found += [text if count == 1 else f"{text} {i + 1}/{count}" for i in range(count)]
    return found


def visible(text: str) -> str:
    """A text with its white space as signs: spaces at either end, line ends and tabs."""
    text = text.replace("\n", "\u21b5").replace("\t", "\u21e5")
    inner = text.strip(" ")
    if not inner:
        return "\u00b7" * len(text)
    start = len(text) - len(text.lstrip(" "))
    return "\u00b7" * start + inner + "\u00b7" * (len(text) - start - len(inner))


def _text_behind(
    decode: Callable[[list[int]], str], before: list[int], ids: list[int]
) -> str | None:
    """What ids add to the text of those before; None where one is no token."""
    try:
        both, first = decode([*before, *ids]), decode(before) if before else ""
        return both[len(first) :] if both.startswith(first) else decode(ids)
    except KeyError:
        return None
