"""A model's tokenizer.json -> Tokenizer, through the library `tokenizers`, which is optional.

What the file says of truncation, padding, dropout and special tokens around a text is not done.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.manifest import GARBLED
from exporters.safefile import open_regular
from jobs.errors import TokenizerError
from jobs.hf_cuts import keeps_cuts
from jobs.tokenizer import Tokenizer

FILE = "tokenizer.json"
MAX_BYTES = 100_000_000
MAX_ID = 2**31 - 2  # ids and the vocabulary's size are int32
MARK = "\0"  # no text holds it: a corpus with a NUL byte is refused as binary
BYTE = re.compile("<0x[0-9A-F]{2}>")  # tokens that stand for a byte where a model knows no other


def load_file(path: Path) -> Tokenizer:
    """The tokenizer of a model's folder, or of a tokenizer.json.

    The end-of-text token is the one that the files beside it name.

    Raises:
        TokenizerError: if it cannot be read or used, or the library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(
            f"{path} needs the library tokenizers, which is not installed; "
            "pip install 'qkvmill[hf]'"
        ) from error
    folder = os.path.isdir(path)
    if folder and not os.path.lexists(path / FILE):
        raise TokenizerError(
            f"{path} holds no {FILE}; give a folder that has one, such as save_pretrained writes"
        )
    file = path / FILE if folder else path
    data = _read(file)
    document = _parse(file, data)
    name = os.fsencode(Path(os.path.abspath(path)).name or FILE).decode("utf-8", "backslashreplace")
    try:
        document |= {"truncation": None, "padding": None, "post_processor": None}
        document["model"]["dropout"] = None
        _hide_special_tokens(document)
        text = json.dumps(document)
    except (*GARBLED, RecursionError) as error:
        raise TokenizerError(f"{file} is no {FILE} of the library tokenizers") from error
    with _one_error(f"{file} cannot be used"), _panics_unheard():
        inner = tokenizers.Tokenizer.from_str(text)
        ids = inner.get_vocab(with_added_tokens=True)
    _check_ids(file, document, ids)
    size = max(ids.values()) + 1
    end_of_text = _end_of_text(file.parent, ids, size)
    textual = [i for token, i in ids.items() if not token.startswith(MARK)]

    def encode_text(text: str) -> NDArray[np.uint32]:
        with _one_error(f"what {name} gives up on"):
            (encoding,) = inner.encode_batch_fast([text], add_special_tokens=False)
            return np.array(encoding.ids, np.uint32)

    def decode(ids: list[int]) -> str:
        for i in set(ids):
            if inner.id_to_token(i) is None:
                raise KeyError(f"{i} is no token of {name}")
        with _one_error(f"{file} cannot decode"):
            return str(inner.decode(ids, skip_special_tokens=False)).replace(MARK, "")

    return Tokenizer(
        name=name,
        library="tokenizers",
        vocabulary_sha256=hashlib.sha256(data).hexdigest(),
        vocabulary_size=size,
        rows_needed=max([*textual, -1 if end_of_text is None else end_of_text]) + 1,
        end_of_text=end_of_text,
        cuttable=keeps_cuts(document),
        encode_text=encode_text,
        decode=decode,
    )


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except ExportError as error:
        raise TokenizerError(str(error)) from error
    except OSError as error:
        raise TokenizerError(f"{path} could not be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{path} has more than {MAX_BYTES:,} bytes, more than any {FILE}")
    return data


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not JSON ({error}); of a model's files, {FILE} is what is read"
        ) from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{path} is not an object of JSON, as {FILE} is")
    return document


def _hide_special_tokens(document: dict[str, Any]) -> None:
    """Rename every special token to what no text holds, so that text cannot become one.

    The library's own encode_special_tokens does not look for them before the model runs, but
    leaves them in the model, and Unigram or WordLevel find "</s>" there again. Ids stay.
    """
    model, added = document["model"], document.get("added_tokens") or []
    vocabulary = model["vocab"]
    known = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else {*vocabulary}
    special = {token["content"] for token in added if token["special"]}
    # Characters and bytes of the model's alphabet are ordinary text, whatever else they mean.
    alphabet = {token for token in special & known if len(token) == 1 or BYTE.fullmatch(token)}
    special -= alphabet

    def renamed(token: str) -> str:
        return MARK + token if token in special else token

    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    document["added_tokens"] = [
        token | plain | {"content": renamed(token["content"])} if token["special"] else token
        for token in added
        if token["content"] not in alphabet
    ]
    if special.isdisjoint(known):
        return
    if isinstance(vocabulary, list):
        model["vocab"] = [[renamed(piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {renamed(token): i for token, i in vocabulary.items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            merge
            for merge in model["merges"]
            if special.isdisjoint(_parts_and_whole(merge, prefix))
        ]


def _parts_and_whole(merge: str | list[str], prefix: int) -> tuple[str, str, str]:
    """The tokens that a merge takes and makes; older files write it as one string."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second[prefix:]


def _check_ids(file: Path, document: dict[str, Any], ids: dict[str, int]) -> None:
    """Raise unless there are tokens, ids fit, and added tokens have those that the file says."""
    if not ids:
        raise TokenizerError(f"{file} has no tokens")
    if max(ids.values()) > MAX_ID:
        raise TokenizerError(f"{file} has a token with the id {max(ids.values())}, beyond {MAX_ID}")
    for token in document["added_tokens"]:
        if ids.get(token["content"]) != token["id"]:
            raise TokenizerError(
                f"{file} gives the added token {token['content'].removeprefix(MARK)!r} the id "
                f"{token['id']}, where it can only be {ids.get(token['content'])}"
            )


def _end_of_text(folder: Path, ids: dict[str, int], size: int) -> int | None:
    """The id of the end-of-text token that tokenizer_config.json or config.json names, or None."""
    named = _beside(folder / "tokenizer_config.json")
    for key in ("eos_token", "sep_token"):
        token = named.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found = ids.get(MARK + content, ids.get(content))
            if found is not None:
                return found
    config = _beside(folder / "config.json")
    for section in (config, config.get("text_config")):
        found = section.get("eos_token_id") if isinstance(section, dict) else None
        if isinstance(found, list) and found:
            found = found[0]
        if type(found) is int and 0 <= found < size:
            return found
    return None


def _beside(path: Path) -> dict[str, Any]:
    return _parse(path, _read(path)) if os.path.lexists(path) else {}


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Turn whatever the library raises into a TokenizerError; a panic of it is no Exception."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what} ({error})") from error


@contextmanager
def _panics_unheard() -> Iterator[None]:
    """Send to nowhere what a panic of the library prints; what it raises says the same."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
