import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.inputs.lines import line_blocks
from jobs.inputs.segments import BadRecord, Lines
from tests.formats import encoded

LINES = st.lists(st.text("ab\r\u2028\x85é", max_size=12).map(str.encode), max_size=12)


def read(data: bytes, most: int, block: int) -> tuple[dict[int, bytes], list[int]]:
    """The lines by number, and the numbers of those that are too long."""
    lines: dict[int, bytes] = {}
    long: list[int] = []
    for segment in line_blocks(io.BytesIO(data), most, block):
        if isinstance(segment, Lines):
            assert segment.first == len(lines) + len(long) + 1
            for number, line in enumerate(
                segment.data.removesuffix(b"\n").split(b"\n"), segment.first
            ):
                lines[number] = line
        else:
            (bad,) = segment.bad
            assert bad.reason == f"has more than the {most:,} bytes of --max-record-bytes"
            long.append(int(bad.place.removeprefix("line ")))
    return lines, long


@settings(max_examples=60, deadline=None)
@given(lines=LINES, most=st.integers(1, 9), block=st.integers(3, 20), ended=st.booleans())
def test_every_line_is_there_by_its_number_or_too_long(
    lines: list[bytes], most: int, block: int, ended: bool
) -> None:
    data = b"\n".join(lines) + b"\n" * (ended and bool(lines))
    found, long = read(data, most, block)
    if not ended and lines and not lines[-1]:
        lines = lines[:-1]
    assert len(lines) == len(found) + len(long)
    for number, line in enumerate(lines, 1):
        assert found.get(number, line) == line
        assert len(line) <= most + block if number in found else len(line) > most


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_lines_in_a_row_that_are_too_long_are_each_a_bad_record(block: int) -> None:
    long = b'{"text": "%s"}' % (b"a" * 80)
    good = b'{"text": "short"}'
    for last in (b"", b"\n"):
        lines = [good, long, long, good, long, long]
        segments = line_blocks(io.BytesIO(b"\n".join(lines) + last), 40, block)
        parts = encoded(segments, max_record_bytes=40)
        assert sum(len(part.starts) for part in parts) == 2
        reason = "has more than the 40 bytes of --max-record-bytes"
        expected = [BadRecord(f"line {number}", reason) for number in (2, 3, 5, 6)]
        assert expected == [bad for part in parts for bad in part.bad]


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("end", [b"", b"\n"], ids=["cut", "whole"])
def test_the_limit_itself_is_allowed(more: int, end: bytes) -> None:
    line = b'{"text": "%s"}' % (b"a" * 20)
    for block in range(3, 60):
        segments = line_blocks(io.BytesIO(line + end), len(line) - more, block)
        parts = encoded(segments, max_record_bytes=len(line) - more)
        assert 1 - more == sum(len(part.starts) for part in parts)
        assert more == sum(len(part.bad) for part in parts)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    (lines,) = line_blocks(io.BytesIO(b"\xef\xbb\xbf{}\n"), 10, 100)
    assert Lines(b"{}\n", 1) == lines


def test_a_file_of_nothing_has_no_lines() -> None:
    assert list(line_blocks(io.BytesIO(b""), 10)) == []
