import io
import itertools
import random
from typing import Any

import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import CorpusError
from jobs.inputs import parquet as reader
from jobs.inputs.parquet import parquet_texts
from jobs.inputs.segments import BadRecord, Texts
from tests.formats import NASTY, parquet_of, read_settings


def read(data: bytes, block: int = 1 << 10, **changed: object) -> list[Texts]:
    settings = read_settings(**changed)  # type: ignore[arg-type]
    return list(parquet_texts("a.parquet", io.BytesIO(data), settings, block))


def texts(segments: list[Texts]) -> list[str]:
    found = []
    for segment in segments:
        starts = [0, *segment.ends.tolist()]
        found += [segment.data[a:b].decode() for a, b in itertools.pairwise(starts)]
    return found


def bad(segments: list[Texts]) -> list[BadRecord]:
    return [record for segment in segments for record in segment.bad]


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.none() | st.sampled_from(NASTY), max_size=9),
    block=st.integers(3, 60),
    group=st.integers(1, 5),
)
def test_every_text_is_there_and_every_null_is_told(
    documents: list[str | None], block: int, group: int
) -> None:
    segments = read(parquet_of({"text": arrow.array(documents, arrow.string())}, group), block)
    assert [text for text in documents if text is not None] == texts(segments)
    nulls = [number for number, text in enumerate(documents, 1) if text is None]
    expected = [BadRecord(f"row {number}", "has no text: it is null") for number in nulls]
    assert expected == bad(segments)


KINDS: dict[str, Any] = {
    "string": arrow.string(),
    "large_string": arrow.large_string(),
    "string_view": arrow.string_view(),
    "binary": arrow.binary(),
    "large_binary": arrow.large_binary(),
    "dictionary": arrow.dictionary(arrow.int32(), arrow.string()),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_string_is_read(kind: Any) -> None:
    values = arrow.array(["one", None, "漢字"], arrow.string()).cast(kind)
    segments = read(parquet_of({"id": [1, 2, 3], "text": values}))
    assert texts(segments) == ["one", "漢字"]
    assert [record.place for record in bad(segments)] == ["row 2"]


def test_more_rows_than_are_decoded_at_once() -> None:
    documents = [f"document {number}" for number in range(3 * reader.ROWS + 1)]
    assert documents == texts(read(parquet_of({"text": documents}, 500)))


def test_a_field_within_a_struct_is_read_and_null_where_the_struct_is() -> None:
    rows = [{"b": "one", "c": 1}, None, {"b": None, "c": 2}, {"b": "two", "c": 3}]
    data = parquet_of({"x": [1, 2, 3, 4], "a": rows})
    segments = read(data, text_field="a.b")
    assert texts(segments) == ["one", "two"]
    assert [record.place for record in bad(segments)] == ["row 2", "row 3"]


def test_a_column_whose_name_has_a_dot_is_read() -> None:
    assert texts(read(parquet_of({"a.b": ["one"]}), text_field="a.b")) == ["one"]


def test_the_column_of_the_name_itself_goes_before_one_that_begins_so() -> None:
    data = parquet_of({"text.long": ["other"], "text": ["one"]})
    assert texts(read(data)) == ["one"]
    both = parquet_of({"a": [{"b": "within"}], "a.b": ["one"]})
    assert texts(read(both, text_field="a.b")) == ["one"]


def test_bytes_that_are_not_utf8_are_bad_or_replaced() -> None:
    data = parquet_of({"text": arrow.array([b"a\xffb", b"ok"], arrow.binary())})
    reason = "is not UTF-8 (see --text-errors)"
    segments = read(data)
    assert (["ok"], [BadRecord("row 1", reason)]) == (texts(segments), bad(segments))
    (segment,) = read(data, text_errors="replace")
    assert (texts([segment]), segment.replaced) == (["a\ufffdb", "ok"], 1)


def test_rows_beyond_the_limit_are_bad_records() -> None:
    segments = read(parquet_of({"text": ["漢" * 4, "a" * 10, "漢" * 3, "b" * 11]}),
                    max_record_bytes=10)  # fmt: skip
    assert texts(segments) == ["a" * 10, "漢" * 3]
    reason = "has more than the 10 bytes of --max-record-bytes"
    assert [BadRecord("row 1", reason), BadRecord("row 4", reason)] == bad(segments)


def twice() -> arrow.Table:
    return arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], ["text", "text"])


REFUSED = {
    "no-column": ({"body": ["a"], "id": [1]}, "has no column 'text', but body, id; name another "
                  "as --text-field"),
    "numbers": ({"text": [1]}, ": the column 'text' holds int64, not strings; name another as "
                "--text-field"),
    "list": ({"text": [["a"]]}, ": the column 'text' holds list<element: string>, not strings; "),
    "struct": ({"text": [{"a": "b"}]}, ": the column 'text' holds struct<a: string>, not strings"),
    "all-null": ({"text": arrow.nulls(2)}, ": the column 'text' holds null, not strings; "),
    "twice": (twice(), "has 2 columns 'text'; give each a name of its own"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_without_a_column_of_strings_is_refused(columns: Any, message: str) -> None:
    with pytest.raises(CorpusError) as refused:
        read(parquet_of(columns))
    assert str(refused.value).startswith("a.parquet")
    assert message in str(refused.value)


@pytest.mark.parametrize("field", ["a.c", "a.b.c", "b.a", "a."])
def test_a_path_that_leads_nowhere_is_refused(field: str) -> None:
    with pytest.raises(
        CorpusError, match=r"^a\.parquet has no column 'a|^a\.parquet has no .* 'b'"
    ):
        read(parquet_of({"a": [{"b": "one"}]}), text_field=field)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"some text\n" * 9, b"PAR1" * 9])
def test_what_is_no_parquet_is_refused(data: bytes) -> None:
    with pytest.raises(CorpusError, match=r"^a\.parquet could not be read as Parquet"):
        read(data)


def test_a_file_that_is_cut_anywhere_is_refused() -> None:
    data = parquet_of({"text": list(NASTY) * 3})
    for size in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(CorpusError, match=r"^a\.parquet could not be read as Parquet"):
            read(data[:size])


def test_damage_is_an_error_in_words_or_changes_no_more_than_texts() -> None:
    data = parquet_of({"text": list(NASTY) * 3, "é": [1] * 3 * len(NASTY)})
    chance = random.Random(0)
    refused = []
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read(bytes(damaged))
        except CorpusError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(message.startswith("a.parquet") for message in refused)
    assert not any("\n" in message for message in refused)
