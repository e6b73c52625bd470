"""Segments of files -> token ids; what a tokenising process does."""

import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jobs.errors import TokenizerError
from jobs.inputs.segments import BadRecord, Lines, Segment, TextPiece, Texts
from jobs.inputs.texts import REPLACEMENT
from jobs.tokenizer import STRETCH, Tokenizer, encode

ARRAY = "; an array of JSON is not read, write one object on each line"
HALF_A_PAIR = "holds half of a surrogate pair, which is no character (see --text-errors)"


@dataclass(frozen=True)
class EncodeSettings:
    """The options by which text becomes ids."""

    separator: int | None  # the token that stands before each document but the first
    text_field: str
    text_errors: str  # "strict" or "replace"
    max_record_bytes: int


@dataclass(frozen=True)
class Encoded:
    """A segment's ids; each document that begins in it has the separator before its start."""

    ids: NDArray[np.uint32]
    starts: NDArray[np.int64]  # of documents, in ids
    replaced: int  # stretches that were no text and are U+FFFD now
    bad: tuple[BadRecord, ...]
    problem: str | None = None  # for which the file cannot be read, without its name


@dataclass
class _Gathered:
    """The ids of documents, one after another."""

    separator: int | None
    pieces: list[NDArray[np.uint32]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    length: int = 0

    def add(self, ids: NDArray[np.uint32]) -> None:
        self.pieces.append(ids)
        self.length += len(ids)

    def begin(self) -> None:
        if self.separator is not None:
            self.add(np.array([self.separator], np.uint32))
        self.starts.append(self.length)

    def taken(
        self, replaced: int = 0, bad: tuple[BadRecord, ...] = (), problem: str | None = None
    ) -> Encoded:
        ids = np.concatenate(self.pieces) if self.pieces else np.empty(0, np.uint32)
        return Encoded(ids, np.array(self.starts, np.int64), replaced, bad, problem)


def encode_segment(segment: Segment, tokenizer: Tokenizer, settings: EncodeSettings) -> Encoded:
    """The ids of a segment: the same as of its whole file at once.

    What is wrong with the text stands in the result, for only who knows the file can say it.
    """
    match segment:
        case TextPiece():
            return _encode_piece(segment, tokenizer, settings)
        case Lines():
            return _encode_lines(segment, tokenizer, settings)
        case Texts():
            return _encode_texts(segment, tokenizer, settings)
        case _:
            return Encoded(segment.ids, segment.starts, 0, ())


def _encode_piece(piece: TextPiece, tokenizer: Tokenizer, settings: EncodeSettings) -> Encoded:
    out = _Gathered(settings.separator)
    try:
        text = piece.data.decode("utf-8", settings.text_errors)
    except UnicodeDecodeError as error:
        return out.taken(
            problem=f"is not UTF-8: byte {piece.offset + error.start} is "
            f"0x{piece.data[error.start]:02x}; mend it or give --text-errors replace"
        )
    replaced = 0
    if settings.text_errors == "replace":
        replaced = text.count(REPLACEMENT) - piece.data.count(REPLACEMENT.encode())
    if piece.begins:
        out.begin()
    try:
        out.add(tokenizer.encode_text(text))
    except TokenizerError as error:
        end = piece.offset + len(piece.data)
        return out.taken(problem=f"holds, before byte {end}, {error}")
    return out.taken(replaced)


def _encode_lines(lines: Lines, tokenizer: Tokenizer, settings: EncodeSettings) -> Encoded:
    out = _Gathered(settings.separator)
    bad: list[BadRecord] = []
    replaced = 0
    for number, line in enumerate(lines.data.split(b"\n"), lines.first):
        if not line or line.isspace():
            continue
        try:
            text, marks = _text_of(line, settings)
            replaced += marks
            _add(out, text, tokenizer)
        except (_NoTextError, TokenizerError) as error:
            bad.append(BadRecord(f"line {number}", str(error)))
    return out.taken(replaced, tuple(bad))


def _encode_texts(texts: Texts, tokenizer: Tokenizer, settings: EncodeSettings) -> Encoded:
    out = _Gathered(settings.separator)
    bad = list(texts.bad)
    start = 0
    for end in texts.ends.tolist():
        try:
            _add(out, texts.data[start:end].decode(), tokenizer)
        except TokenizerError as error:
            bad.append(BadRecord(f"{texts.place} or soon after", f"holds {error}"))
        start = end
    return out.taken(texts.replaced, tuple(bad))


def _add(out: _Gathered, text: str, tokenizer: Tokenizer) -> None:
    """Encode a whole document; where the tokenizer gives up, nothing of it is added."""
    stretches = (text[at : at + STRETCH] for at in range(0, len(text), STRETCH))
    ids = list(encode(tokenizer, stretches))
    out.begin()
    for piece in ids:
        out.add(piece)


class _NoTextError(Exception):
    """A line that holds no text, and why."""


def _text_of(line: bytes, settings: EncodeSettings) -> tuple[str, int]:
    """The text in a line of JSON, and how many stretches of it were none.

    Raises:
        _NoTextError: if there is none.
    """
    if len(line) > settings.max_record_bytes:
        raise _NoTextError(f"has more than the {settings.max_record_bytes:,} bytes of "
                           "--max-record-bytes")  # fmt: skip
    replaced = 0
    try:
        source = line.decode("utf-8", settings.text_errors)
        if settings.text_errors == "replace":
            replaced = source.count(REPLACEMENT) - line.count(REPLACEMENT.encode())
        value = json.loads(source)
    except UnicodeDecodeError as error:
        raise _NoTextError(f"is not UTF-8: its byte {error.start} is 0x{line[error.start]:02x} "
                           "(see --text-errors)") from error  # fmt: skip
    except RecursionError as error:
        raise _NoTextError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        hint = ARRAY if source.lstrip().startswith("[") else ""
        what = error.msg.removesuffix(" at")
        raise _NoTextError(f"is not JSON: {what} at its character {error.pos + 1}{hint}") from error
    except ValueError as error:  # a number too long for Python
        raise _NoTextError(f"could not be read: {error}") from error
    text = _field_of(value, settings.text_field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if settings.text_errors == "strict":
            raise _NoTextError(HALF_A_PAIR) from error
        raw = text.encode("utf-8", "surrogatepass")
        mended = "".join(REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in text)
        return mended, replaced + len(mended) - len(raw.decode("utf-8", "ignore"))
    return text, replaced


def _field_of(value: object, name: str) -> str:
    """The text in a JSON object, under a name or a path of names with dots between."""
    if not isinstance(value, dict):
        raise _NoTextError("is no JSON object" + (ARRAY if isinstance(value, list) else ""))
    for key in _path(value, name):
        if not isinstance(value, dict) or key not in value:
            known = reprlib.repr(list(value)) if isinstance(value, dict) else "no object"
            raise _NoTextError(f"has no field {name!r} (there is {known}); see --text-field")
        value = value[key]
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise _NoTextError(f"has a field {name!r} that is {kind}, not a string")
    return value


def _path(value: dict[str, object], name: str) -> Iterator[str]:
    yield from [name] if name in value else name.split(".")
