import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import CorpusError
from jobs.inputs import text as text_reader
from jobs.inputs.segments import ReadSettings, TextPiece
from jobs.inputs.text import byte_cut, text_pieces
from jobs.tokenizer import ENCODINGS, tiktoken_encoding

SETTINGS = ReadSettings(
    text_field="text", text_errors="strict", token_dtype=None, max_record_bytes=1 << 20,
    cuttable=True, end_of_text=100257, vocabulary_size=100277, tokenizer="cl100k_base",
)  # fmt: skip
ON_THE_CUTS = st.lists(
    st.sampled_from(
        ["\n", "\r\n", " ", "  ", "\t", "a", "word", " the", "Z9", "é", "ß", "漢字", "，", "。",
         "\u3000", "👩\u200d👩\u200d👧", "e\u0301", "\u0301", ".", "!", "'s", "'", "\ufffd",
         "12345", "<|endoftext|>", "\xa0", "\u2028", "١", "\n\n", " \n", "ab\ncd", "x\n1", "Ⅳ",
         "ா", "한", "한\n국"]
    ), max_size=60,
).map("".join)  # fmt: skip


def pieces(data: bytes, block: int = 16, **changed: object) -> list[TextPiece]:
    settings = ReadSettings(**{**SETTINGS.__dict__, **changed})
    return list(text_pieces("a.txt", io.BytesIO(data), settings, block))


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=40, deadline=None)
@given(text=ON_THE_CUTS.filter(bool), block=st.integers(1, 40))
def test_tokens_of_the_pieces_are_those_of_the_whole_text(name: str, text: str, block: int) -> None:
    encoding = tiktoken_encoding(name)[0]
    ids = [
        i for p in pieces(text.encode(), block) for i in encoding.encode_ordinary(p.data.decode())
    ]
    assert encoding.encode_ordinary(text) == ids


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), text=ON_THE_CUTS, block=st.integers(1, 40))
def test_bytes_that_are_not_utf8_are_replaced_as_in_the_whole(
    data: bytes, text: str, block: int
) -> None:
    data = (data + text.encode() + data).replace(b"\0", b"\xff")
    replaced = "".join(p.data.decode("utf-8", "replace") for p in pieces(data, block))
    assert data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace") == replaced


def test_pieces_follow_each_other_and_the_first_begins_the_document() -> None:
    found = pieces(b"some words\nand a few more words\nto be cut\n")
    assert len(found) > 2
    assert [True] + [False] * (len(found) - 1) == [piece.begins for piece in found]
    at = 0
    for piece in found:
        assert at == piece.offset
        at += len(piece.data)


@pytest.mark.parametrize("cuttable", [True, False])
def test_a_byte_order_mark_is_left_out_and_counted(cuttable: bool) -> None:
    (piece,) = pieces(b"\xef\xbb\xbfword", cuttable=cuttable)
    assert TextPiece(b"word", 3, True) == piece


def test_a_tokenizer_that_takes_no_pieces_gets_the_whole_document() -> None:
    data = b"some words\nand a few more\n" * 10
    assert [TextPiece(data, 0, True)] == pieces(data, cuttable=False)


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["nothing", "only a BOM"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(CorpusError, match=r"^a\.txt is empty; remove it or leave it out$"):
        pieces(data)


def test_a_binary_file_is_refused_with_the_place() -> None:
    with pytest.raises(CorpusError, match="binary, not text: byte 33 is NUL"):
        pieces(b"some words and more of the words.\0")


@pytest.mark.parametrize("cuttable", [True, False])
def test_what_cannot_be_cut_is_refused_at_a_limit(
    cuttable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_reader, "LONGEST", 1000)
    wanted = (
        "from byte 6 on, 1,000 bytes without" if cuttable else "more than 1,000 bytes, and cl100k"
    )
    with pytest.raises(CorpusError, match=wanted):
        pieces(b"words\n" + b"a" * 3000, cuttable=cuttable)


def test_the_search_for_a_cut_reaches_back_as_far_as_there_is_text() -> None:
    text = "one word" + "漢" * 100_000
    assert byte_cut(text.encode()) == 3


def test_a_cut_after_half_a_character_at_the_start_of_the_search_is_a_place_in_bytes() -> None:
    for filler in range(4090, 4100):
        data = ("é" * filler).encode() + b" one two" + "é".encode() * 2040
        assert data[byte_cut(data) :][:4] == b" two"


def test_half_a_white_space_where_the_search_begins_is_no_visible_character() -> None:
    searched = "\u3000\n" + "é" * ((text_reader.REACH - 2) // 2)
    data = ("two words" + searched).encode()
    assert len(data) - text_reader.REACH == len(b"two words") + 2
    assert byte_cut(data) == len("two")
