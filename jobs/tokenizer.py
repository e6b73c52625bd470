"""Documents -> token ids, by any Tokenizer; tiktoken's encodings, from vocabularies in data/vocab.

Nothing is ever downloaded. tiktoken's own constructors give each encoding's pattern and special
tokens; only the function that would fetch the ranks is replaced by one that reads them here.
"""

import base64
import binascii
import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, cast

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tiktoken.model import MODEL_TO_ENCODING, encoding_name_for_model
from tiktoken_ext import openai_public

from exporters.nearest import nearest
from jobs.errors import TokenizerError


def _vocabularies() -> Path:
    """data/vocab: beside our packages, but on a worker of a cluster each lies for itself."""
    beside = Path(__file__).resolve().parent.parent / "data" / "vocab"
    spec = None if beside.is_dir() else find_spec("data")
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(p) / "vocab" for p in places if (Path(p) / "vocab").is_dir()), beside)


VOCABULARIES = _vocabularies()
ENCODINGS = tuple(openai_public.ENCODING_CONSTRUCTORS)

# Text is encoded in stretches of at least this many characters, cut where no token can cross.
STRETCH = 1 << 18
# Encoding takes up to 1.4 s and 80 MB for a million characters, and what stands between two places
# where it can be cut has to be encoded whole. No text of people comes near; 10 GB of "a" would.
LONGEST = 1 << 24
# After a newline between a visible character and a letter or digit, before a space between two
# ASCII letters, or before a comma or full stop after a Chinese character, every encoding here
# begins a new piece whatever follows or went before.
SAFE_CUT = re.compile(
    r"(?<=\S\n)(?=[^\W_])|(?<=[A-Za-z])(?= [A-Za-z])|(?<=[\u4e00-\u9fa5])(?=[\u3001\u3002\uff0c])"
)


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """What turns text into token ids, and ids back into text for people.

    encode_text takes a text of any length and gives its ids, none of them special: text that looks
    like a special token is ordinary text. It raises TokenizerError where the library gives up.
    decode takes ids and raises KeyError for one that is no token.
    """

    name: str
    library: Literal["tiktoken", "tokenizers"]  # whose version shapes ids
    vocabulary_sha256: str
    vocabulary_size: int  # one more than the largest id, special and added tokens included
    rows_needed: int  # of an embedding: one more than the largest id of any text and of end_of_text
    end_of_text: int | None
    cuttable: bool  # whether no token crosses a SAFE_CUT
    encode_text: Callable[[str], NDArray[np.uint32]]
    decode: Callable[[list[int]], str]


def load_encoding(name: str) -> Tokenizer:
    """One of ENCODINGS as a Tokenizer.

    Raises:
        TokenizerError: if its vocabulary file is missing or damaged.
    """
    encoding, sha256 = tiktoken_encoding(name)

    def encode_text(text: str) -> NDArray[np.uint32]:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError as error:  # as on a million spaces
            reason = str(error).partition(": ")[2].rstrip(".") or error
            raise TokenizerError(
                f"a run of white space too long for {name} ({reason}); shorten it"
            ) from error

    return Tokenizer(
        name=name,
        library="tiktoken",
        vocabulary_sha256=sha256,
        vocabulary_size=encoding.n_vocab,
        rows_needed=max(len(encoding.token_byte_values()), encoding.eot_token + 1),
        end_of_text=encoding.eot_token,
        cuttable=True,
        encode_text=encode_text,
        decode=encoding.decode,
    )


def encoding_meant(name: str) -> str | None:
    """The encoding whose name, or that of a model such as gpt-4o, is most like a name; or None."""
    try:
        return encoding_name_for_model(name)
    except KeyError:
        names = {encoding: encoding for encoding in ENCODINGS} | MODEL_TO_ENCODING
        near = nearest(name, names)
        return None if near is None else names[near]


def tiktoken_encoding(name: str) -> tuple[tiktoken.Encoding, str]:
    """One of ENCODINGS, from the vocabularies in data/vocab, and the hash of its ranks.

    Raises:
        TokenizerError: if its vocabulary file is missing or damaged.
    """
    hashes: list[str] = []

    def load_ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        hashes.append(expected_hash)
        return read_ranks(VOCABULARIES / f"{url.rpartition('/')[2]}.gz", expected_hash)

    return tiktoken.Encoding(**_parameters(name, load_ranks)), hashes[0]


def patterns() -> frozenset[str]:
    """The regular expressions by which ENCODINGS cut text into pieces."""
    return frozenset(
        _parameters(name, lambda url, expected_hash: {})["pat_str"] for name in ENCODINGS
    )


def read_ranks(path: Path, expected_sha256: str) -> dict[bytes, int]:
    """The merge ranks of a gzipped .tiktoken file: a base64 token and its rank on each line.

    Raises:
        TokenizerError: if the file is missing, or its contents are not those that tiktoken expects.
    """
    try:
        contents = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise TokenizerError(f"the vocabulary {path} is missing; reinstall qkvmill") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerError(
            f"the vocabulary {path} is damaged ({error}); reinstall qkvmill"
        ) from error
    found = hashlib.sha256(contents).hexdigest()
    if found != expected_sha256:
        raise TokenizerError(
            f"the vocabulary {path} is damaged: its SHA-256 is {found}, "
            f"not {expected_sha256}; reinstall qkvmill"
        )
    try:
        pairs = (line.split() for line in contents.splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(f"the vocabulary {path} is not in tiktoken's format") from error


def encode(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
    """The ids of one document that comes in pieces: the same as of the whole text at once.

    Holds the longest stretch between two safe cuts, or about STRETCH characters; of a tokenizer
    that cannot be cut, the whole document.

    Raises:
        TokenizerError: if more than LONGEST characters would have to be held, or the library gives
            up on a stretch; it is the text of the latest pieces.
    """
    held: list[str] = []
    length, enough = 0, STRETCH
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length < enough:
            continue
        if not tokenizer.cuttable:
            if length > LONGEST:
                raise TokenizerError(
                    f"more than {LONGEST:,} characters, and {tokenizer.name} cannot be given a "
                    "document in parts, for its tokens may cross any place; split the document"
                )
            continue
        text = "".join(held)
        cut = last_safe_cut(text)
        if cut:
            yield tokenizer.encode_text(text[:cut])
        held = [text[cut:]]
        length = len(text) - cut
        if length > LONGEST:
            raise TokenizerError(
                f"{LONGEST:,} characters without a place to cut them, such as a line's end before "
                "a letter or a space between words; break that line"
            )
        # Where no cut was found the next search waits for twice the text, so that all the searches
        # together stay linear.
        enough = STRETCH if cut else min(2 * length, LONGEST + 1)
    text = "".join(held)
    if text:
        yield tokenizer.encode_text(text)


def last_safe_cut(text: str) -> int:
    """The last place where cutting the text changes no token, or 0."""
    # Searched from the end in growing stretches: a cut is seldom far.
    reach = 1 << 12
    while True:
        start = max(len(text) - reach, 0)
        cuts = [match.start() for match in SAFE_CUT.finditer(text, start)]
        if cuts and cuts[-1] > 0:
            return cuts[-1]
        if start == 0:
            return 0
        reach *= 8


def _parameters(name: str, load_ranks: Callable[[str, str], dict[bytes, int]]) -> dict[str, Any]:
    """What tiktoken makes an encoding of, its ranks from load_ranks(url, expected_hash)."""

    def load_gpt2_ranks(**_: str) -> dict[bytes, int]:
        # GPT-2's own files hold the same ranks as r50k_base in an older notation.
        parameters = _with_loaders("r50k_base", load_tiktoken_bpe=load_ranks)()
        return cast(dict[bytes, int], parameters["mergeable_ranks"])

    loaders: dict[str, Callable[..., Any]] = {
        "load_tiktoken_bpe": load_ranks,
        "data_gym_to_mergeable_bpe_ranks": load_gpt2_ranks,
        "o200k_base": _with_loaders("o200k_base", load_tiktoken_bpe=load_ranks),
    }
    return _with_loaders(name, **loaders)()


def _with_loaders(name: str, **loaders: Callable[..., Any]) -> Callable[[], dict[str, Any]]:
    """A copy of tiktoken's constructor of an encoding that calls other loaders."""
    constructor = cast(FunctionType, openai_public.ENCODING_CONSTRUCTORS[name])
    return FunctionType(constructor.__code__, {**constructor.__globals__, **loaders}, name)
