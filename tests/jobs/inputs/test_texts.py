import numpy as np
import pytest

from jobs.inputs.segments import BadRecord
from jobs.inputs.texts import Packer, utf8


def test_documents_are_taken_together_with_their_ends() -> None:
    packer = Packer(block=1 << 10)
    for number, text in enumerate([b"one", b"", b"three"], 5):
        packer.add(text, f"row {number}")
    packer.bad.append(BadRecord("row 8", "is null"))
    packer.replaced = 2
    taken = packer.take()
    assert (taken.data, taken.ends.tolist(), taken.place) == (b"onethree", [3, 3, 8], "row 5")
    assert np.int64 == taken.ends.dtype
    assert ((BadRecord("row 8", "is null"),), 2) == (taken.bad, taken.replaced)


def test_the_next_documents_begin_anew() -> None:
    packer = Packer()
    packer.add(b"one", "row 1")
    packer.replaced = 1
    packer.take()
    packer.add(b"two", "row 2")
    taken = packer.take()
    assert (
        taken.data, taken.ends.tolist(), taken.place, taken.bad, taken.replaced
    ) == (b"two", [3], "row 2", (), 0)  # fmt: skip


def test_it_is_full_by_bytes_by_documents_and_by_bad_records() -> None:
    by_bytes, by_documents, by_bad = Packer(block=640), Packer(block=640), Packer(block=640)
    by_bytes.add(b"a" * 639, "row 1")
    assert not by_bytes.full()
    by_bytes.add(b"a", "row 2")
    for number in range(10):
        assert not by_documents.full()
        assert not by_bad.full()
        by_documents.add(b"", f"row {number}")
        by_bad.bad.append(BadRecord(f"row {number}", "is null"))
    assert by_bytes.full()
    assert by_documents.full()
    assert by_bad.full()


@pytest.mark.parametrize(
    ("raw", "text", "replaced"),
    [
        pytest.param("é漢\ufffd".encode(), "é漢\ufffd", 0, id="whole"),
        pytest.param(b"a\xffb\xc3(\xe6\xbc", "a\ufffdb\ufffd(\ufffd", 3, id="broken"),
        pytest.param(b"\xe0\xef\xbf\xbd", "\ufffd\ufffd", 1, id="beside-one-that-was-there"),
        pytest.param(b"\xed\xa0\x80", "\ufffd\ufffd\ufffd", 3, id="surrogate"),
        pytest.param(b"", "", 0, id="empty"),
    ],
)
def test_stretches_that_are_not_utf8_are_replaced_and_counted(
    raw: bytes, text: str, replaced: int
) -> None:
    assert (text.encode(), replaced) == utf8(raw, "replace")


def test_strict_raises() -> None:
    assert utf8(b"ok", "strict") == (b"ok", 0)
    with pytest.raises(UnicodeDecodeError):
        utf8(b"\xff", "strict")
