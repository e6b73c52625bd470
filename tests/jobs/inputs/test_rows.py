import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import CorpusError
from jobs.inputs.rows import rows
from jobs.inputs.segments import BadRecord, Texts
from tests.formats import DOCUMENTS, NASTY, read_settings, table

BLOCK = 1 << 10


def read(data: bytes, delimiter: str = ",", block: int = BLOCK, **changed: object) -> list[Texts]:
    settings = read_settings(**changed)  # type: ignore[arg-type]
    return list(rows("a.csv", io.BytesIO(data), delimiter, settings, block))


def texts(segments: list[Texts]) -> list[str]:
    found = []
    for segment in segments:
        starts = [0, *segment.ends.tolist()]
        found += [segment.data[a:b].decode() for a, b in itertools.pairwise(starts)]
    return found


def bad(segments: list[Texts]) -> list[BadRecord]:
    return [record for segment in segments for record in segment.bad]


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, block=st.integers(3, 60), delimiter=st.sampled_from(",\t"))
def test_every_text_is_there_as_it_was(documents: list[str], block: int, delimiter: str) -> None:
    segments = read(table(documents, delimiter), delimiter, block)
    assert documents == texts(segments)
    assert bad(segments) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
def test_rows_end_with_either_end_of_line(end: str, last: bool) -> None:
    data = end.join(["id,text", "1,one", '2,"two\r\nlines"', '3,"a ""b"" c"']) + end * last
    assert texts(read(data.encode())) == ["one", "two\r\nlines", 'a "b" c']


def test_blank_lines_and_a_byte_order_mark_are_no_rows() -> None:
    data = b"\xef\xbb\xbftext\n\none\n\n\ntwo\n\n"
    assert texts(read(data)) == ["one", "two"]
    assert texts(read(b'text\n""\nx\n')) == ["", "x"]


def test_a_quote_within_a_field_is_a_quote() -> None:
    assert texts(read(b"id\ttext\n1\t5\" disk\n2\t6'\n", "\t")) == ['5" disk', "6'"]


TOO_FEW = "has 1 columns, not 2"
BAD = {
    "too-few": (b"2", "line 3", TOO_FEW),
    "too-many": (b"2,b,c", "line 3", "has 3 columns, not 2"),
    "after-quote": (b'2,"b"c', "line 3", "is no row of the table (',' expected after '\"')"),
    "carriage-return": (b"2,b\rc", "line 3", "holds a carriage return outside of quotes"),
    "not-utf8": (b"2,b\xff", "line 3",
                 "is not UTF-8 (see --text-errors)"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "place", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("block", [3, 8, BLOCK])
def test_a_bad_row_is_told_by_its_line_and_the_others_are_there(
    line: bytes, place: str, reason: str, block: int
) -> None:
    segments = read(b"id,text\n1,a\n" + line + b'\n4,"d\nd"\n' + line + b"\n5,e\n", block=block)
    assert texts(segments) == ["a", "d\nd", "e"]
    assert [BadRecord(place, reason), BadRecord("line 6", reason)] == bad(segments)


def test_an_open_quote_is_told_by_the_line_where_its_row_begins() -> None:
    segments = read(b'id,text\n1,a\n2,"b\n3,c\n4,d\n')
    assert texts(segments) == ["a"]
    reason = "is cut short: a quote is open at the end of the file"
    assert [BadRecord("line 3", reason)] == bad(segments)


def test_bytes_that_are_not_utf8_are_replaced_and_counted() -> None:
    (segment,) = read(b"id\xff,text\n1,a\xffb\n2\xff,\xe6\xbc\n", text_errors="replace")
    assert (texts([segment]), segment.replaced) == (["a\ufffdb", "\ufffd"], 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "a.csv is empty; remove it or leave it out", id="nothing"),
        pytest.param(
            b"\ntext\na\n", "a.csv has no row of column names: line 1 is empty", id="blank"
        ),
        pytest.param(b"\xef\xbb\xbf", "a.csv is empty; remove it or leave it out", id="only-BOM"),
        pytest.param(b"id,body\n1,a\n", "a.csv has no column 'text', but id, body; name one of "
                     "them as --text-field", id="no-column"),
        pytest.param(b"text,id,text\na,1,b\n", "a.csv has 2 columns 'text'; give each a name of "
                     "its own", id="twice"),
        pytest.param(b'"text\n1,a\n', "a.csv has no row of column names: line 1 is cut short: a "
                     "quote is open at the end of the file", id="open-quote"),
        pytest.param(b"text\r1\r2\r", "a.csv has no row of column names: line 1 holds a carriage "
                     "return outside of quotes", id="old-Mac"),
    ],
)  # fmt: skip
def test_a_file_without_the_column_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorpusError) as refused:
        read(data)
    assert message == str(refused.value)


@pytest.mark.parametrize("block", [3, 16, 1000])
@pytest.mark.parametrize(
    "row",
    [b"1," + b"a" * 40 + b"\n", b"1," + b"a" * 40, b'1,"' + b"a\n" * 20 + b'"\n'],
    ids=["line", "last-line", "quoted-lines"],
)
def test_a_row_beyond_the_limit_is_refused_for_the_next_cannot_be_told(
    block: int, row: bytes
) -> None:
    data = b"id,text\n0,a\n" + row
    with pytest.raises(CorpusError) as refused:
        read(data, block=block, max_record_bytes=30)
    assert str(refused.value) == (
        "a.csv: line 3 has more than the 30 bytes of --max-record-bytes; raise them, or close the "
        "quote that is open there"
    )
    assert len(texts(read(data, block=block, max_record_bytes=50))) == 2


def test_the_limit_is_one_of_bytes() -> None:
    row = '1,"' + "漢\n" * 10 + '"\n'
    with pytest.raises(CorpusError, match="line 2 has more than the 30 bytes"):
        read(b"id,text\n" + row.encode(), max_record_bytes=30)


def test_nasty_documents_survive_in_small_blocks() -> None:
    for block in range(3, 40):
        assert list(NASTY) == texts(read(table(NASTY), block=block))
