import gzip
import hashlib
import itertools
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from jobs import tokenizer as tokenizers
from jobs.choose_tokenizer import load_tokenizer
from jobs.errors import ConfigError, TokenizerError
from jobs.tokenizer import (
    ENCODINGS,
    Tokenizer,
    encode,
    last_safe_cut,
    load_encoding,
    tiktoken_encoding,
)
from tests.helpers import DATA, GOLDEN

SPECIAL = "a <|endoftext|> b <|fim_prefix|> c <|endofprompt|>"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


LOADED: dict[str, Tokenizer] = {}


def loaded(name: str) -> Tokenizer:
    if name not in LOADED:
        LOADED[name] = load_encoding(name)
    return LOADED[name]


def sample_texts() -> list[str]:
    return [path.read_bytes().decode() for path in sorted(DATA.rglob("*.txt"))]


@pytest.fixture(scope="module")
def tiktokens_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder such as tiktoken fills when it downloads, from our vocabularies."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("r50k_base", "p50k_base", "cl100k_base", "o200k_base"):
        constants = openai_public.ENCODING_CONSTRUCTORS[name].__code__.co_consts
        (url,) = [c for c in constants if isinstance(c, str) and c.endswith(f"{name}.tiktoken")]
        ranks = gzip.decompress((DATA / "vocab" / f"{name}.tiktoken.gz").read_bytes())
        (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(ranks)
    return folder


def test_the_seven_encodings_are_there() -> None:
    assert set(ENCODINGS) == {
        "gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony"
    }  # fmt: skip


def test_the_notebooks_tokens() -> None:
    assert len(GOLDEN["text"]) == 60
    ids = loaded("cl100k_base").encode_text(GOLDEN["text"])
    assert ids.tolist() == GOLDEN["token_ids"]
    assert (len(ids), ids.max()) == (69, 92877)


@pytest.mark.parametrize(
    ("name", "size", "end_of_text", "hello_world"),
    [
        ("gpt2", 50257, 50256, [31373, 995]),
        ("r50k_base", 50257, 50256, [31373, 995]),
        ("p50k_base", 50281, 50256, [31373, 995]),
        ("p50k_edit", 50284, 50256, [31373, 995]),
        ("cl100k_base", 100277, 100257, [15339, 1917]),
        ("o200k_base", 200019, 199999, [24912, 2375]),
        ("o200k_harmony", 201088, 199999, [24912, 2375]),
    ],
)
def test_each_encodings_published_numbers(
    name: str, size: int, end_of_text: int, hello_world: list[int]
) -> None:
    tokenizer = loaded(name)
    assert (name, size, end_of_text) == (
        tokenizer.name, tokenizer.vocabulary_size, tokenizer.end_of_text
    )  # fmt: skip
    assert tokenizer.encode_text("hello world").tolist() == hello_world


@pytest.mark.parametrize("name", [n for n in ENCODINGS if n != "gpt2"])
def test_equals_tiktokens_own_encoding(
    name: str, tiktokens_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktokens_cache))
    theirs = tiktoken.get_encoding(name)
    assert theirs._special_tokens == tiktoken_encoding(name)[0]._special_tokens
    for text in [*sample_texts(), SPECIAL]:
        assert theirs.encode_ordinary(text) == loaded(name).encode_text(text).tolist()


def test_gpt2_equals_r50k_base() -> None:
    for text in sample_texts():
        expected = loaded("r50k_base").encode_text(text)
        assert np.array_equal(expected, loaded("gpt2").encode_text(text))


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_that_looks_special_is_ordinary(name: str) -> None:
    tokenizer = loaded(name)
    ids = tokenizer.encode_text(SPECIAL)
    assert tokenizer.decode(ids.tolist()) == SPECIAL
    assert not set(ids.tolist()) & set(tiktoken_encoding(name)[0]._special_tokens.values())


TROUBLE = st.text(
    st.one_of(
        st.sampled_from(
            [
                *list("ab Z9_.\n\r\t/'’-!   "),
                "\n",
                "\n",
                " ",
                "s",
                "T",
                "雪",
                "é",
                "́",
                "。",
                "，",
                "、",
            ]
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", ENCODINGS)
@given(text=TROUBLE)
def test_cutting_at_a_safe_place_changes_no_token(name: str, text: str) -> None:
    tokenizer = loaded(name)
    whole = tokenizer.encode_text(text).tolist()
    for match in tokenizers.SAFE_CUT.finditer(text):
        at = match.start()
        halves = [*tokenizer.encode_text(text[:at]), *tokenizer.encode_text(text[at:])]
        assert whole == halves, (at, text)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_safe_place_of_the_sample_corpus_changes_no_token(name: str) -> None:
    tokenizer = loaded(name)
    cuts = 0
    for text in sample_texts():
        # Pieces end at every safe place at once: if one changed a token, the ids would differ.
        places = [0, *(m.start() for m in tokenizers.SAFE_CUT.finditer(text)), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(places)]
        ids = [i for piece in pieces for i in tokenizer.encode_text(piece).tolist()]
        assert tokenizer.encode_text(text).tolist() == ids
        cuts += len(places) - 2
    assert cuts > 10_000


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("stretch", [1, 50, 10**6])
def test_a_document_in_pieces_gives_the_ids_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, piece: int, stretch: int
) -> None:
    monkeypatch.setattr(tokenizers, "STRETCH", stretch)
    tokenizer = loaded("cl100k_base")
    for text in sample_texts():
        text = text[:5000]
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
        ids = np.concatenate(list(encode(tokenizer, pieces)))
        assert np.array_equal(tokenizer.encode_text(text), ids)


def test_chinese_without_a_newline_is_cut_before_its_commas_and_full_stops() -> None:
    tokenizer = loaded("cl100k_base")
    text = "小沈阳江西演唱会，邀请沈春。" * 60_000
    stretches = list(encode(tokenizer, [text[i : i + 50_000] for i in range(0, len(text), 50_000)]))
    assert len(stretches) > 2
    assert np.array_equal(tokenizer.encode_text(text), np.concatenate(stretches))


def test_text_without_a_safe_place_beyond_the_limit_is_refused_before_it_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizers, "LONGEST", 1 << 20)
    tokenizer = loaded("cl100k_base")
    taken = 0

    def pieces(start: str) -> Iterator[str]:
        nonlocal taken
        yield start
        while True:
            taken += 1
            yield "a" * 50_000

    for start in ("", "one two"):
        with pytest.raises(TokenizerError, match="1,048,576 characters without a place to cut"):
            list(encode(tokenizer, pieces(start)))
        assert taken < 25
        taken = 0


@pytest.mark.parametrize(
    ("name", "text"),
    [("o200k_base", " " * 10**6), ("cl100k_base", " " * 10**6 + "a"), ("gpt2", " " * 10**6 + "a")],
)
def test_what_tiktoken_gives_up_on_is_an_error(name: str, text: str) -> None:
    with pytest.raises(TokenizerError, match=f"a run of white space too long for {name}"):
        loaded(name).encode_text(text)


def test_text_without_a_safe_place_is_kept_whole_at_linear_cost() -> None:
    pieces = ["雪" * 1000] * 400
    (ids,) = encode(loaded("o200k_base"), iter(pieces))
    assert loaded("o200k_base").decode(ids.tolist()) == "雪" * 400_000


def test_only_a_stretch_of_a_long_document_is_held() -> None:
    taken = 0

    def pieces() -> Iterator[str]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield "The same line again.\n" * 5000

    stretches = encode(loaded("cl100k_base"), pieces())
    next(stretches)
    assert taken <= 3


def test_safe_places_are_found_however_far_back() -> None:
    assert last_safe_cut("one two" + "雪" * 100_000) == 3
    assert last_safe_cut("雪" * 100_000) == 0
    assert last_safe_cut("a\nb\nc") == 4
    assert last_safe_cut("") == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cl100k", "did you mean cl100k_base?"),
        ("o200k-base", "did you mean o200k_base?"),
        ("gpt4", "did you mean cl100k_base?"),
        ("gpt-4o-2025", "did you mean o200k_base?"),
        ("nonsense", "choose one of gpt2"),
        ("../cl100k_base", "did you mean cl100k_base?"),
    ],
)
def test_an_unknown_encoding_suggests_the_near_miss(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_tokenizer(name)
    assert hint in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "not-gzip", "other", "gone"])
def test_a_damaged_vocabulary_is_named_and_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = tmp_path / "vocab"
    shutil.copytree(DATA / "vocab", folder)
    path = folder / "p50k_base.tiktoken.gz"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        other = (folder / "r50k_base.tiktoken.gz").read_bytes()
        content = {
            "empty": b"", "truncated": data[:-100], "flipped": flipped,
            "not-gzip": b"hello", "other": other,
        }  # fmt: skip
        path.write_bytes(content[damage])
    monkeypatch.setattr(tokenizers, "VOCABULARIES", folder)
    with pytest.raises(TokenizerError) as error:
        load_tokenizer("p50k_edit")
    assert str(path) in str(error.value)
    assert "reinstall" in str(error.value)
