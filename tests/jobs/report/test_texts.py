import pytest

from jobs.report.texts import Piece, labels, pieces, token_text, visible
from jobs.tokenizer import load_encoding
from tests.helpers import DATA

CL100K = load_encoding("cl100k_base")


@pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
def test_pieces_make_up_the_text_and_hold_its_ids(encoding: str) -> None:
    tokenizer = load_encoding(encoding)
    for name in ("english/bread", "chinese/river", "rtl/arabic", "code/python"):
        text = (DATA / "corpus" / f"{name}.txt").read_text("utf-8")
        ids = tokenizer.encode_text(text).tolist()
        found = pieces(tokenizer, ids)
        assert "".join(piece.text for piece in found) == text
        assert [i for piece in found for i in piece.ids] == ids
        assert not any("\ufffd" in piece.text for piece in found)


def test_tokens_that_share_a_character_are_one_piece() -> None:
    ids = CL100K.encode_text("春").tolist()
    assert len(ids) == 2
    found = pieces(CL100K, [279, *ids, 279])
    assert found == [Piece((279,), " the"), Piece(tuple(ids), "春"), Piece((279,), " the")]
    assert labels(found) == ["·the", "春 1/2", "春 2/2", "·the"]


def test_half_a_character_at_the_end_is_shown() -> None:
    first, _ = CL100K.encode_text("春").tolist()
    assert pieces(CL100K, [first]) == [Piece((first,), "\ufffd")]


def test_an_id_that_is_no_token_says_so() -> None:
    assert pieces(CL100K, [279, 100256, 279]) == [
        Piece((279,), " the"),
        Piece((100256,), "[100256]"),
        Piece((279,), " the"),
    ]
    assert token_text(CL100K, 100256) == "[100256]"


def test_what_is_obeyed_elsewhere_is_escaped() -> None:
    ids = CL100K.encode_text("a\u202eb\x1b[0m").tolist()
    assert "".join(piece.text for piece in pieces(CL100K, ids)) == "a\\u202eb\\x1b[0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" the", "·the"), ("  ", "··"), ("a b", "a b"), (";\n", ";↵"), ("\tx ", "⇥x·"), ("", "")],
)
def test_white_space_is_seen(text: str, shown: str) -> None:
    assert shown == visible(text)
