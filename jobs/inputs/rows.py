"""CSV and TSV: the column of a name, a document each row, by the csv module."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import CorpusError
from jobs.inputs.lines import BOM, too_long
from jobs.inputs.segments import BLOCK, BadRecord, Readable, ReadSettings, Texts, read_exactly
from jobs.inputs.texts import NOT_UTF8, Packer, utf8


@dataclass
class _Row:
    """The row that is being read."""

    first: int = 1  # number of its first line
    size: int = 0  # bytes of its lines so far


def rows(
    location: str, stream: Readable, delimiter: str, settings: ReadSettings, block: int = BLOCK
) -> Iterator[Texts]:
    """The texts of a file whose first row names its columns.

    Quotes stand around a field that holds the delimiter, a quote (doubled) or a line's end.

    Raises:
        CorpusError: if there is no such column, or a row is longer than a record may be: where the
            next one begins can then not be told.
    """
    csv.field_size_limit(settings.max_record_bytes)
    row = _Row()
    lines = _lines(location, stream, settings.max_record_bytes, block, row)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader)
    except StopIteration:
        raise CorpusError(f"{location} is empty; remove it or leave it out") from None
    except csv.Error as error:
        raise CorpusError(
            f"{location} has no row of column names: line 1 {_reason(error)}"
        ) from error
    if not names:
        raise CorpusError(f"{location} has no row of column names: line 1 is empty")
    column = _column(location, names, settings.text_field)
    packed = Packer(block)
    while True:
        row.first, row.size = reader.line_num + 1, 0
        place = f"line {row.first}"
        try:
            fields = next(reader, None)
            if fields is None:
                break
            if not fields:
                continue
            if len(fields) != len(names):
                reason = f"has {len(fields)} columns, not {len(names)}"
                packed.bad.append(BadRecord(place, reason))
            else:
                raw = fields[column].encode("utf-8", "surrogateescape")
                text, replaced = utf8(raw, settings.text_errors)
                packed.replaced += replaced
                packed.add(text, place)
        except csv.Error as error:
            packed.bad.append(BadRecord(place, _reason(error)))
        except UnicodeDecodeError:
            packed.bad.append(BadRecord(place, NOT_UTF8))
        if packed.full():
            yield packed.take()
    if packed.parts or packed.bad:
        yield packed.take()


def _column(location: str, names: list[str], name: str) -> int:
    """Which column has a name."""
    if name not in names:
        held = ", ".join(names) or "none"
        raise CorpusError(
            f"{location} has no column {name!r}, but {held}; name one of them as --text-field"
        )
    if names.count(name) > 1:
        raise CorpusError(
            f"{location} has {names.count(name)} columns {name!r}; give each a name of its own"
        )
    return names.index(name)


def _reason(error: csv.Error) -> str:
    """What is wrong with a row."""
    if "unexpected end" in str(error):
        return "is cut short: a quote is open at the end of the file"
    if "new-line character" in str(error):
        return "holds a carriage return outside of quotes"
    return f"is no row of the table ({error})"


def _lines(location: str, stream: Readable, most: int, block: int, row: _Row) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become halves of surrogates."""
    held = bytearray()
    start = True
    while data := read_exactly(stream, block):
        held += data[len(BOM) :] if start and data.startswith(BOM) else data
        start = False
        *whole, held = held.split(b"\n")
        for line in whole:
            _count(location, row, len(line), most)
            yield line.decode("utf-8", "surrogateescape") + "\n"
        if len(held) > most:
            _count(location, row, len(held), most)
    if held:
        _count(location, row, len(held), most)
        yield held.decode("utf-8", "surrogateescape")


def _count(location: str, row: _Row, size: int, most: int) -> None:
    row.size += size + (row.size > 0)  # the end of the line before
    if row.size > most:
        raise CorpusError(
            f"{location}: line {row.first} {too_long(row.first, most).reason}; raise them, or "
            "close the quote that is open there"
        )
