import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.encode import Encoded
from jobs.inputs.lines import line_blocks
from jobs.inputs.parquet import parquet_texts
from jobs.inputs.rows import rows
from jobs.inputs.segments import BadRecord, Lines, Segment, TextPiece, Texts
from jobs.inputs.text import text_pieces
from jobs.tokenizer import ENCODINGS
from tests import formats
from tests.formats import DOCUMENTS, RECORDS, encoded, encoding, joined, read_settings

READERS: dict[str, Callable[[bytes, int], Iterator[Segment]]] = {
    "jsonl": lambda data, block: line_blocks(io.BytesIO(data), 1 << 20, block),
    "json": lambda data, block: line_blocks(io.BytesIO(data), 1 << 20, block),
    "csv": lambda data, block: rows("a", io.BytesIO(data), ",", read_settings(), block),
    "tsv": lambda data, block: rows("a", io.BytesIO(data), "\t", read_settings(), block),
    "parquet": lambda data, block: parquet_texts("a", io.BytesIO(data), read_settings(), block),
}


def in_one(parts: list[Encoded]) -> tuple[list[int], list[int]]:
    """Ids and the starts of documents, from those of segments."""
    ids: list[int] = []
    starts: list[int] = []
    for part in parts:
        assert (part.problem, part.bad) == (None, ())
        starts += (len(ids) + part.starts).tolist()
        ids += part.ids.tolist()
    return ids, starts


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, kind=st.sampled_from([*RECORDS]), block=st.integers(3, 80))
def test_ids_of_records_are_those_of_each_whole_document(
    name: str, documents: list[str], kind: str, block: int
) -> None:
    segments = READERS[kind](RECORDS[kind](documents), block)
    ids, starts = in_one(encoded(segments, name))
    end = encoding(name).eot_token
    assert [end, *joined(name, documents)] == ids
    lengths = [1 + len(encoding(name).encode_ordinary(text)) for text in documents]
    assert [1 + sum(lengths[:number]) for number in range(len(documents))] == starts


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=40, deadline=None)
@given(text=formats.ON_THE_CUTS, block=st.integers(3, 40))
def test_ids_of_a_text_are_those_of_the_whole(name: str, text: str, block: int) -> None:
    text = text.replace("\0", "").lstrip("\ufeff") + "."
    pieces = text_pieces("a", io.BytesIO(text.encode()), read_settings(), block)
    ids, starts = in_one(encoded(pieces, name))
    assert [encoding(name).eot_token, *joined(name, [text])] == ids
    assert starts == [1]


def lines(*of: bytes, **changed: Any) -> Encoded:
    (part,) = encoded([Lines(b"\n".join(of) + b"\n", 1)], **changed)
    return part


SEE = " (see --text-errors)"
ARRAY = "; an array of JSON is not read, write one object on each line"
BAD_LINES = {
    "text": (b"some text", "is not JSON: Expecting value at its character 1"),
    "cut": (b'{"text": "cut', "is not JSON: Unterminated string starting at its character 10"),
    "two": (b'{"text": "a"} {"text": "b"}', "is not JSON: Extra data at its character 15"),
    "array": (b'["a"]', "is no JSON object" + ARRAY),
    "open-array": (b"[", "is not JSON: Expecting value at its character 2" + ARRAY),
    "string": (b'"text"', "is no JSON object"),
    "number": (b"7", "is no JSON object"),
    "null": (b"null", "is no JSON object"),
    "no-field": (
        b'{"body": "a", "id": 1}',
        "has no field 'text' (there is ['body', 'id']); see --text-field",
    ),
    "no-fields": (b"{}", "has no field 'text' (there is []); see --text-field"),
    "null-field": (b'{"text": null}', "has a field 'text' that is null, not a string"),
    "number-field": (b'{"text": 1.5}', "has a field 'text' that is float, not a string"),
    "list-field": (b'{"text": ["a"]}', "has a field 'text' that is list, not a string"),
    "not-utf8": (b'{"text": "\xff"}', "is not UTF-8: its byte 10 is 0xff" + SEE),
    "not-utf8-elsewhere": (
        b'{"text": "a", "b": "\xc3("}',
        "is not UTF-8: its byte 20 is 0xc3" + SEE,
    ),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "is not UTF-8: its byte 0 is 0xff" + SEE),
    "surrogate": (
        rb'{"text": "\ud83d"}',
        "holds half of a surrogate pair, which is no character" + SEE,
    ),
    "control": (b'{"text": "a\x01"}', "is not JSON: Invalid control character at its character 12"),
    "NUL": (b'{"text": "a\x00"}', "is not JSON: Invalid control character at its character 12"),
    "second-BOM": (b'\xef\xbb\xbf{"text": "a"}', "is not JSON: Unexpected UTF-8 BOM"),
    "deep": (b'{"text": ' + b"[" * 100_000, "is nested too deeply"),
    "long-number": (b'{"text": ' + b"1" * 5000 + b"}", "could not be read: Exceeds the limit"),
    "too-long": (
        b'{"text": "%s"}' % (b"a" * 2_000_000),
        "has more than the 1,500,000 bytes of --max-record-bytes",
    ),
    "white-space": (
        b'{"text": "%sb"}' % (b" " * 1_000_100),
        "a run of white space too long for gpt2",
    ),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_without_a_text_is_told_and_the_others_are_there(line: bytes, reason: str) -> None:
    good = b'{"text": "good"}'
    part = lines(good, line, b"", good, line, max_record_bytes=1_500_000)
    assert joined("gpt2", ["", "good", "good"]) == part.ids.tolist()
    assert [record.place for record in part.bad] == ["line 2", "line 5"]
    assert all(record.reason.startswith(reason) for record in part.bad), part.bad[0].reason
    assert part.problem is None


def test_bytes_and_halves_of_pairs_are_replaced_and_counted() -> None:
    part = lines(b'{"text": "a\xffb"}', rb'{"text": "\ud83d\ude00 \ud83d \ude00"}',
                 '{"text": "\ufffd"}'.encode(), text_errors="replace")  # fmt: skip
    assert (
        joined("gpt2", ["", "a\ufffdb", "\U0001f600 \ufffd \ufffd", "\ufffd"]) == part.ids.tolist()
    )
    assert (part.replaced, part.bad) == (3, ())


@pytest.mark.parametrize(
    ("field", "text"),
    [("text", "one"), ("a.b", "two"), ("a.c.d", "three"), ("x.y", "four"), ("", None), ("a", None),
     ("a.b.c", None), ("a..b", None), (".", None)],
)  # fmt: skip
def test_a_field_may_lie_within_others(field: str, text: str | None) -> None:
    line = b'{"text": "one", "a": {"b": "two", "c": {"d": "three"}}, "x.y": "four"}'
    part = lines(line, text_field=field)
    assert ([] if text is None else joined("gpt2", ["", text])) == part.ids.tolist()
    assert (text is None) == bool(part.bad)


def test_the_last_of_fields_of_one_name_and_nul_in_a_string_are_read() -> None:
    part = lines(rb'{"text": "a", "text": "b\u0000\u2028"}')
    assert joined("gpt2", ["", "b\0\u2028"]) == part.ids.tolist()


def test_bytes_of_a_text_that_are_not_utf8_are_a_problem_with_their_place() -> None:
    piece = TextPiece(b"ab\xffc", 100, True)
    (part,) = encoded([piece])
    assert part.problem == "is not UTF-8: byte 102 is 0xff; mend it or give --text-errors replace"
    (part,) = encoded([piece], text_errors="replace")
    assert (joined("gpt2", ["", "ab\ufffdc"]), 1) == (part.ids.tolist(), part.replaced)


def test_a_document_that_the_library_gives_up_on_is_a_bad_record_or_a_problem() -> None:
    spaces = " " * 1_000_100 + "b"
    (part,) = encoded([TextPiece(spaces.encode(), 7, True)])
    assert part.problem is not None
    assert part.problem.startswith("holds, before byte 1000108, a run of white space too long")
    data = f"a{spaces}b"
    ends = np.array([1, 1 + len(spaces), len(data)])
    (part,) = encoded([Texts(data.encode(), ends, "row 4", (BadRecord("row 5", "is null"),))])
    assert joined("gpt2", ["", "a", "b"]) == part.ids.tolist()
    assert [record.place for record in part.bad] == ["row 5", "row 4 or soon after"]


def test_without_a_separator_documents_follow_each_other() -> None:
    part = lines(b'{"text": "a"}', b'{"text": ""}', b'{"text": "b"}', separator=None)
    gpt2 = encoding("gpt2")
    assert [*gpt2.encode_ordinary("a"), *gpt2.encode_ordinary("b")] == part.ids.tolist()
    assert part.starts.tolist() == [0, 1, 1]
