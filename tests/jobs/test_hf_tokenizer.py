"""tokenizer.json files that the library itself trains on data/, and what is made of them."""

import builtins
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner
from transformers import PreTrainedTokenizerFast

from exporters.manifest import read_manifest
from exporters.reading import open_stream
from jobs import tokenizer as stretches
from jobs.choose_tokenizer import check_vocabulary, load_tokenizer, resolve, tokenizer_of
from jobs.config import JobConfig
from jobs.errors import ConfigError, TokenizerError
from jobs.hf_cuts import LLAMA_3, QWEN_2, keeps_cuts, known_patterns
from jobs.hf_tokenizer import load_file
from jobs.inputs import text as text_reader
from jobs.tokenizer import SAFE_CUT, Tokenizer, encode, load_encoding, tiktoken_encoding
from tests.helpers import DATA, SMALL, qkvmill, succeed, write_corpus

TEXTS = [path.read_bytes().decode() for path in sorted(DATA.rglob("*.txt"))]
BYTES = pre_tokenizers.ByteLevel.alphabet()
SPECIALS = ["<unk>", "<s>", "</s>", "[SEP]", "<|endoftext|>"]


def byte_level(pattern: str | None = None, normalizer: Any = None) -> Inner:
    """A BPE of bytes: by GPT-2's own pieces or by a pattern's."""
    inner = Inner(models.BPE())
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        inner.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    inner.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"vocab_size": 1500, "show_progress": False}
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(special_tokens=SPECIALS, initial_alphabet=BYTES, **options),
    )
    return inner


def gpt2_like() -> Inner:
    return byte_level()


def llama_like() -> Inner:
    inner = byte_level(LLAMA_3)
    inner.add_tokens([AddedToken("\n\n"), AddedToken("    ")])
    inner.add_special_tokens([AddedToken("<|im_end|>", lstrip=True, rstrip=True)])
    return inner


def qwen_like() -> Inner:
    return byte_level(QWEN_2, normalizers.NFC())


def bert_like() -> Inner:
    inner = Inner(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    specials = ["[UNK]", *SPECIALS]
    inner.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=4000, special_tokens=specials, show_progress=False),
    )
    return inner


def t5_like() -> Inner:
    inner = Inner(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    options: dict[str, Any] = {"vocab_size": 4500, "unk_token": "<unk>", "show_progress": False}
    inner.train_from_iterator(TEXTS, trainers.UnigramTrainer(special_tokens=SPECIALS, **options))
    return inner


def llama_2_like() -> Inner:
    """Pieces of sentencepiece in a BPE: bytes for what it does not know, no pre-tokenizer."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    specials = [*SPECIALS, *bytes_]
    inner = Inner(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    ])  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=3500, special_tokens=specials, limit_alphabet=300, show_progress=False
        ),
    )
    inner.pre_tokenizer = None
    inner.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    ])  # fmt: skip
    document = json.loads(inner.to_str())
    document["added_tokens"] = document["added_tokens"][: len(SPECIALS)]
    return Inner.from_str(json.dumps(document))


def words() -> Inner:
    inner = Inner(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False)
    )
    return inner


KINDS: dict[str, Callable[[], Inner]] = {
    make.__name__: make
    for make in (gpt2_like, llama_like, qwen_like, bert_like, t5_like, llama_2_like, words)
}
CUTTABLE = ("gpt2_like", "llama_like", "qwen_like")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, with a tokenizer.json that also truncates and pads."""
    root = tmp_path_factory.mktemp("models")
    for name, make in KINDS.items():
        inner = make()
        inner.enable_truncation(5)
        inner.enable_padding(length=64)
        (root / name).mkdir()
        inner.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return root


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def raw(folder: Path) -> Inner:
    """The library's own tokenizer, without truncation and padding."""
    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    return inner


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder with its tokenizer.json changed."""
    shutil.copytree(folder, to)
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(document)
    (to / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    return to


def test_ids_are_those_of_transformers(folders: Path, kind: str) -> None:
    ours = load_file(folders / kind)
    file = str(folders / kind / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=file)  # type: ignore[no-untyped-call]
    for text in TEXTS:
        if kind in ("t5_like", "words"):  # whose models find special tokens in text there
            for special in SPECIALS:
                text = text.replace(special, "")
        ids = ours.encode_text(text)
        assert ids.dtype == np.uint32
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)
        assert ids.tolist() == expected["input_ids"]


def test_what_a_tokenizer_says_of_itself(folders: Path, kind: str) -> None:
    ours, theirs = load_file(folders / kind), raw(folders / kind)
    data = (folders / kind / "tokenizer.json").read_bytes()
    assert (ours.name, ours.library) == (kind, "tokenizers")
    assert ours.vocabulary_sha256 == hashlib.sha256(data).hexdigest()
    assert ours.vocabulary_size == max(theirs.get_vocab().values()) + 1
    assert ours.end_of_text == theirs.token_to_id("</s>")
    assert ours.cuttable == (kind in CUTTABLE)
    assert load_file(folders / kind / "tokenizer.json").name == "tokenizer.json"


def test_text_that_looks_special_is_ordinary(folders: Path, kind: str) -> None:
    ours, theirs = load_file(folders / kind), raw(folders / kind)
    unknown = {theirs.token_to_id("<unk>"), theirs.token_to_id("[UNK]")}
    special = {i for i, token in theirs.get_added_tokens_decoder().items() if token.special}
    for text in ("a </s> b", "</s>", "x<s>y</s>", "<unk> [SEP]", " <|im_end|> <|endoftext|>"):
        assert not (special - unknown) & {*ours.encode_text(text).tolist()}, text
    found = ours.decode(ours.encode_text("x <s>y</s>").tolist())
    assert kind == "words" or "".join(found.split()) == "x<s>y</s>"


def test_a_merge_that_makes_a_special_token_is_not_done(tmp_path: Path) -> None:
    vocab = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}
    for merges in ([["<", "s"], ["<s", ">"]], ["< s", "<s >"]):
        document = {
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            "added_tokens": [{
                "id": 4, "content": "<s>", "special": True, "normalized": True, "lstrip": True,
                "rstrip": True, "single_word": False
            }],
        }  # fmt: skip
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document))
        assert load_file(path).encode_text("<s>").tolist() == [3, 2]


def test_a_special_token_of_one_character_is_text_where_text_holds_it(tmp_path: Path) -> None:
    document = {
        "model": {"type": "BPE", "vocab": {"a": 0, "\n": 1}, "merges": []},
        "added_tokens": [{
            "id": 1, "content": "\n", "special": True, "normalized": False, "lstrip": False,
            "rstrip": False, "single_word": False
        }],
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "\\n"}}')
    tokenizer = load_file(path)
    assert tokenizer.encode_text("a\na").tolist() == [0, 1, 0]
    assert tokenizer.end_of_text == 1


def test_dropout_is_not_done(folders: Path, tmp_path: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        document["model"]["dropout"] = 0.9

    folder = changed(folders / "gpt2_like", tmp_path / "dropping", drop)
    whole, other = load_file(folders / "gpt2_like"), load_file(folder)
    assert np.array_equal(whole.encode_text(TEXTS[0]), other.encode_text(TEXTS[0]))


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, 2),
        ({"tokenizer_config.json": {"eos_token": {"content": "<s>"}}}, 1),
        ({"tokenizer_config.json": {"eos_token": None, "sep_token": "[SEP]"}}, 3),
        ({"tokenizer_config.json": {"eos_token": "gone", "bos_token": "<s>"}}, None),
        ({"tokenizer_config.json": {}, "config.json": {"eos_token_id": 4}}, 4),
        ({"config.json": {"eos_token_id": [2, 4]}}, 2),
        ({"config.json": {"text_config": {"eos_token_id": 1}}}, 1),
        ({"config.json": {"eos_token_id": 10**6}}, None),
        ({"config.json": {"eos_token_id": True, "text_config": [1]}}, None),
    ],
)
def test_the_end_of_text_is_the_one_that_the_files_beside_it_name(
    folders: Path, tmp_path: Path, beside: dict[str, Any], expected: int | None
) -> None:
    shutil.copy(folders / "gpt2_like/tokenizer.json", tmp_path)
    for name, document in beside.items():
        (tmp_path / name).write_text(json.dumps(document))
    assert load_file(tmp_path).end_of_text == expected
    assert load_file(tmp_path / "tokenizer.json").end_of_text == expected


def test_a_decoded_text_is_the_text(folders: Path, kind: str) -> None:
    tokenizer = load_file(folders / kind)
    text = "One fish, two fish."
    decoded = tokenizer.decode(tokenizer.encode_text(text).tolist())
    if kind == "words":
        assert decoded.startswith("<unk> <unk>")
    else:
        assert decoded.strip() == (text.lower() if kind == "bert_like" else text)
    assert "</s>" in tokenizer.decode([5, tokenizer.end_of_text or 0])
    with pytest.raises(KeyError):
        tokenizer.decode([tokenizer.vocabulary_size])


def test_a_tokenizer_with_more_tokens_than_rows_is_refused() -> None:
    tokenizer = load_encoding("gpt2")
    check_vocabulary(tokenizer, 50257, "--weights x")
    with pytest.raises(ConfigError, match="ids up to 50256, more than the 50256 rows of the embe"):
        check_vocabulary(tokenizer, 50256, "--weights x")


def test_the_folder_of_the_weights_is_the_default(folders: Path, tmp_path: Path) -> None:
    def config(**options: Any) -> JobConfig:
        return JobConfig(corpus=(str(tmp_path),), out=tmp_path / "out", **options)

    folder = folders / "bert_like"
    assert resolve(config()) == resolve(config(weights=tmp_path / "w.safetensors")) == "cl100k_base"
    assert tokenizer_of(config(weights=folder)).name == "bert_like"
    assert tokenizer_of(config(weights=folder, tokenizer="gpt2")).name == "gpt2"
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; nor a config\.json: give the"):
        resolve(config(weights=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json; give --tokenizer"):
        resolve(config(weights=tmp_path))


# Where documents are cut.

TROUBLE = st.text(
    st.one_of(
        st.sampled_from([*"ab Z9_.\n\n\n  \r\t/'’-! s T雪é。，、", "́", "가", "ᆨ", "ά"]),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=60,
)  # fmt: skip
BY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def pieces_of(pieces: Any, text: str) -> list[str]:
    return [piece for piece, _ in pieces.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [None, *sorted(known_patterns())])
@given(text=TROUBLE)
def test_every_known_pattern_begins_a_piece_at_every_safe_cut(
    pattern: str | None, text: str
) -> None:
    pieces = BY_BYTES if pattern is None else pre_tokenizers.Split(Regex(pattern), "isolated")
    whole = pieces_of(pieces, text)
    for match in SAFE_CUT.finditer(text):
        at = match.start()
        assert whole == pieces_of(pieces, text[:at]) + pieces_of(pieces, text[at:])


@given(text=TROUBLE)
def test_nfc_changes_nothing_across_a_safe_cut(text: str) -> None:
    nfc = normalizers.NFC()
    whole = nfc.normalize_str(text)
    for match in SAFE_CUT.finditer(text):
        first, second = (
            nfc.normalize_str(t) for t in (text[: match.start()], text[match.start() :])
        )
        assert whole == first + second
        cut = SAFE_CUT.match(whole, len(first))
        assert cut is not None


def test_what_the_librarys_patterns_take_for_white_space_is_so_for_safe_cuts() -> None:
    spaces = pre_tokenizers.Split(Regex(r"\s"), "removed")
    for code in [*range(1, 0xD800), *range(0xE000, 0x110000)]:
        if not spaces.pre_tokenize_str(chr(code)):
            assert chr(code).isspace(), hex(code)


LOADED: dict[str, Tokenizer] = {}


@pytest.mark.parametrize("name", CUTTABLE)
@given(text=TROUBLE)
def test_cutting_at_a_safe_place_changes_no_token(folders: Path, name: str, text: str) -> None:
    if name not in LOADED:
        LOADED[name] = load_file(folders / name)
    encode_text = LOADED[name].encode_text
    whole = encode_text(text).tolist()
    for match in SAFE_CUT.finditer(text):
        at = match.start()
        assert whole == [*encode_text(text[:at]), *encode_text(text[at:])], (at, text)


@pytest.mark.parametrize("name", CUTTABLE)
def test_every_safe_place_of_the_sample_corpus_changes_no_token(folders: Path, name: str) -> None:
    tokenizer = load_file(folders / name)
    for text in TEXTS:
        places = [0, *(m.start() for m in SAFE_CUT.finditer(text)), len(text)]
        ids = [i for a, b in itertools.pairwise(places) for i in tokenizer.encode_text(text[a:b])]
        assert tokenizer.encode_text(text).tolist() == ids


def test_a_document_in_pieces_gives_the_ids_of_the_whole(
    folders: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "STRETCH", 50)
    tokenizer = load_file(folders / kind)
    for text in TEXTS[:6]:
        pieces = [text[i : i + 300] for i in range(0, 5000, 300)]
        found = list(encode(tokenizer, pieces))
        assert (len(found) > 1) == (kind in CUTTABLE) or len(text) < 300
        assert np.array_equal(tokenizer.encode_text(text[: 17 * 300]), np.concatenate(found))


UNCUT: dict[str, Callable[[dict[str, Any]], object]] = {
    "normalizer": lambda d: d.update(normalizer={"type": "NFKC"}),
    "no pieces": lambda d: d.update(pre_tokenizer=None),
    "prefix": lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "pieces of pieces": lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
    "pattern": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\S+"}),
    "string": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": LLAMA_3}),
    "behaviour": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
    "inverted": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
    "more": lambda d: d["pre_tokenizer"]["pretokenizers"].append({"type": "WhitespaceSplit"}),
    "other": lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0),
    "model": lambda d: d["model"].update(type="WordPiece"),
    "a word": lambda d: d["added_tokens"][-2].update(content="a b"),
    "stripping": lambda d: d["added_tokens"][-2].update(lstrip=True),
    "single": lambda d: d["added_tokens"][-2].update(single_word=True),
}


@pytest.mark.parametrize("change", UNCUT.values(), ids=UNCUT)
def test_any_other_pipeline_is_not_cut(
    folders: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    document = json.loads((folders / "llama_like/tokenizer.json").read_text("utf-8"))
    assert keeps_cuts(document)
    change(document)
    assert not keeps_cuts(document)


def test_a_document_that_cannot_be_cut_is_bounded_and_named(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_reader, "LONGEST", 1 << 20)
    corpus = write_corpus(tmp_path / "corpus", a="Some words. " * 200_000)
    for command in (["run"], ["plan", "--exact"]):
        result = qkvmill(
            *command, corpus, "--out", tmp_path / "out", *SMALL, "--tokenizer", folders / "t5_like"
        )
        assert result.status == 1
        said = f"{corpus / 'a.txt'} holds more than 1,048,576 bytes, and t5_like cannot be given"
        assert said in result.stderr
        assert "split the document" in result.stderr


# GPT-2's and cl100k_base's own vocabularies.


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that ranks stand for: each token of the two that it is made of last."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            costs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            at = min(range(len(costs)), key=costs.__getitem__)
            assert costs[at] < rank
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def from_ranks(name: str) -> Inner:
    """A tokenizer.json of a tiktoken encoding, as published ones are made."""
    encoding, _ = tiktoken_encoding(name)
    ranks = encoding._mergeable_ranks
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in order}
    others = [byte for byte in range(256) if byte not in shown]
    shown |= {byte: chr(256 + i) for i, byte in enumerate(others)}

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    inner = Inner(
        models.BPE(
            vocab={text(token): rank for token, rank in ranks.items()},
            merges=[(text(a), text(b)) for a, b in merges_of(ranks)],
        )
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name != "gpt2":
        inner.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return inner


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_the_tokenizer_json_of_an_encoding_gives_tiktokens_ids(tmp_path: Path, name: str) -> None:
    from_ranks(name).save(str(tmp_path / "tokenizer.json"))
    theirs, ours = load_encoding(name), load_file(tmp_path)
    assert ours.cuttable
    for text in [*TEXTS, "a <|endoftext|> b", "  1234567  \n\n x'LL \t"]:
        ids = theirs.encode_text(text)
        assert np.array_equal(ids, ours.encode_text(text))
        assert theirs.decode(ids.tolist()) == ours.decode(ids.tolist())


# As people meet it.


def test_a_job_with_a_models_tokenizer(folders: Path, tmp_path: Path, kind: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=TEXTS[0][:3000], b=TEXTS[1][:3000])
    job = (corpus, *SMALL, "--tokenizer", folders / kind)
    out = tmp_path / "out"
    plan = succeed("plan", *job, "--out", out, "--json").json
    succeed("run", *job, "--out", out)
    succeed("verify", out, "--sample", 2)
    manifest = read_manifest(out)
    theirs = raw(folders / kind)
    ids = [theirs.encode(text[:3000], add_special_tokens=False).ids for text in TEXTS[:2]]
    expected = [*ids[0], theirs.token_to_id("</s>"), *ids[1]]
    assert plan["tokens"] == manifest.tokens["count"] == len(expected)
    assert open_stream(out, manifest).read(0, len(expected)).tolist() == expected
    assert manifest.tokenizer["name"] == kind
    assert manifest.software["tokenizers"] == tokenizers.__version__
    assert "tiktoken" not in manifest.software
    assert str(folders) not in (out / "manifest.json").read_text("utf-8")
    assert manifest.layer is not None
    assert manifest.layer["vocabulary_size"] == manifest.tokenizer["vocabulary_size"]


def test_inspect_needs_the_tokenizer_itself_for_texts(folders: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish.\n" * 20)
    out, folder = tmp_path / "out", folders / "llama_like"
    succeed("run", corpus, "--out", out, *SMALL, "--tokenizer", folder)
    window = ("inspect", out, "--window", 0)
    without = succeed(*window)
    assert "texts are not shown" in without.stderr
    assert "the tokenizer 'llama_like', which is not known" in without.stderr
    assert "as --tokenizer" in without.stderr
    assert "input ids" in without.stdout
    assert "One fish" not in without.stdout
    record = succeed(*window, "--json").json
    assert record["input_text"] is record["target_text"] is None
    for place in (folder, folder / "tokenizer.json"):
        shown = succeed(*window, "--tokenizer", place, "--json").json
        assert shown["input_text"].startswith("One fish, two fish.")
        assert shown["input_ids"] == record["input_ids"]
    for other in (folders / "gpt2_like", "gpt2"):
        result = qkvmill(*window, "--tokenizer", other)
        assert result.status == 1
        assert "is not the tokenizer 'llama_like'" in result.stderr
    assert "llama_like" in succeed("inspect", out).stdout


def test_a_folder_named_as_an_encoding_is_meant_by_its_path(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders / "gpt2_like", tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("gpt2").library == "tiktoken"
    assert load_tokenizer(Path("gpt2")).library == load_tokenizer("./gpt2").library == "tokenizers"
    assert load_tokenizer("gpt2/").name == "gpt2"
    write_corpus(tmp_path / "corpus", a="One fish, two fish.\n" * 20)
    succeed("run", "corpus", "--out", "out", *SMALL, "--tokenizer", "./gpt2")
    assert "another vocabulary under the name gpt2" in qkvmill(
        "inspect", "out", "--window", 0
    ).stderr  # fmt: skip


def test_where_a_tokenizer_lies_is_not_part_of_the_job(folders: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish.\n" * 20)
    out, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(folders / "qwen_like", moved)
    succeed("run", corpus, "--out", out, *SMALL, "--tokenizer", folders / "qwen_like")
    again = succeed("run", corpus, "--out", out, *SMALL, "--tokenizer", moved)
    assert "nothing is done" in again.stderr
    other = qkvmill("run", corpus, "--out", out, *SMALL, "--tokenizer", folders / "gpt2_like")
    assert other.status == 1
    assert "tokenizer.vocabulary_sha256 was" in other.stderr
    encoding = qkvmill("run", corpus, "--out", out, *SMALL)
    assert encoding.status == 1


def test_a_compact_export_of_a_models_tokenizer_is_expanded(folders: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish.\n" * 20)
    job = ("run", corpus, *SMALL, "--method", "tables", "--tokenizer", folders / "bert_like")
    succeed(*job, "--out", tmp_path / "full")
    succeed(*job, "--out", tmp_path / "compact", "--artifact", "compact")
    succeed("expand", tmp_path / "compact", "--out", tmp_path / "expanded")
    sums = [
        (tmp_path / name / "SHA256SUMS").read_text().splitlines()[1:]
        for name in ("full", "expanded")
    ]
    assert sums[0] == sums[1]


def test_without_an_end_of_text_the_separator_has_to_be_none(folders: Path, tmp_path: Path) -> None:
    shutil.copy(folders / "gpt2_like/tokenizer.json", tmp_path)
    corpus = write_corpus(tmp_path / "corpus", a="one two three " * 20, b="four five " * 20)
    job = (corpus, *SMALL, "--out", tmp_path / "out", "--tokenizer", tmp_path)
    for command in ("run", "plan"):
        result = qkvmill(command, *job)
        assert result.status == 2
        assert "names no end-of-text token" in result.stderr
        assert "--separator none" in result.stderr
    assert not (tmp_path / "out").exists()
    succeed("run", *job, "--separator", "none")
    assert read_manifest(tmp_path / "out").tokenizer["end_of_text"] is None
    succeed("verify", tmp_path / "out")


def test_without_the_library_the_error_says_what_to_install(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(TokenizerError, match=r"pip install 'qkvmill\[hf\]'"):
        load_tokenizer(folders / "gpt2_like")
    assert load_tokenizer("gpt2").name == "gpt2"


def test_a_panic_while_loading_says_nothing_but_its_error(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def damage(document: dict[str, Any]) -> None:
        document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}

    folder = changed(folders / "t5_like", tmp_path / "damaged", damage)
    with pytest.raises(TokenizerError, match="cannot be used"):
        load_file(folder)
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_a_panic_while_encoding_is_an_error_of_the_file(folders: Path, tmp_path: Path) -> None:
    def endless(document: dict[str, Any]) -> None:
        pattern = {"Regex": "(x+x+)+y"}
        document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = pattern

    folder = changed(folders / "llama_like", tmp_path / "endless", endless)
    corpus = write_corpus(tmp_path / "corpus", a="x" * 60)
    result = qkvmill("run", corpus, "--out", tmp_path / "out", *SMALL, "--tokenizer", folder)
    assert result.status == 1
    assert "a.txt holds, before byte 60, what endless gives up on (Onig" in result.stderr
