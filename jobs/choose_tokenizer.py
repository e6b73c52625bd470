"""Which tokenizer is meant: one of tiktoken's by name, or that of a model's folder or file."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from exporters.bucket import Place
from exporters.manifest import MANIFEST, read_manifest
from jobs.config import JobConfig
from jobs.errors import ConfigError, CorpusError, TokenizerError
from jobs.hf_tokenizer import FILE, load_file
from jobs.inputs.folders import TOKENS
from jobs.tokenizer import ENCODINGS, Tokenizer, encoding_meant, load_encoding

DEFAULT = "cl100k_base"


def tokenizer_of(config: JobConfig) -> Tokenizer:
    """The tokenizer of a job.

    Raises:
        ConfigError: if --tokenizer is unknown, or has no token for the job's separator.
        TokenizerError: if it cannot be used.
    """
    tokenizer = load_tokenizer(resolve(config))
    if config.separator == "eot" and tokenizer.end_of_text is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name} names no end-of-text token to stand between "
            "documents; give --separator none"
        )
    return tokenizer


def resolve(config: JobConfig) -> str | Path:
    """Where a job's tokenizer is: --tokenizer, else the folder of --weights, else cl100k_base.

    Raises:
        TokenizerError: if the folder of --weights would have to hold it and does not.
    """
    if config.tokenizer is not None:
        return config.tokenizer
    if config.weights is None or not os.path.isdir(config.weights):
        return DEFAULT
    if not os.path.lexists(config.weights / FILE):
        hint = "give --tokenizer, that of the model"
        if os.path.lexists(config.weights / "manifest.json"):
            hint = f"it is an export: give its layer, {config.weights / 'weights.safetensors'}"
        elif os.path.isdir(config.weights / "snapshots"):
            hint = "it is a folder of a cache: give the one in its snapshots"
        elif not os.path.lexists(config.weights / "config.json"):
            hint = "nor a config.json: give the folder of a model"
        raise TokenizerError(f"--weights {config.weights} holds no {FILE}; {hint}")
    return config.weights


def load_tokenizer(place: str | Path) -> Tokenizer:
    """The tokenizer of a name of tiktoken's, or else of a folder or a tokenizer.json.

    Args:
        place: as --tokenizer has it; a Path is never taken for a name.

    Raises:
        ConfigError: if it is none of these.
        TokenizerError: if it cannot be used.
    """
    if isinstance(place, str) and place in ENCODINGS:
        return load_encoding(place)
    if place and os.path.lexists(place):
        return load_file(Path(place))
    near = encoding_meant(str(place)) or encoding_meant(os.path.basename(place))
    hint = f"did you mean {near}?" if near else f"choose one of {', '.join(ENCODINGS)}"
    raise ConfigError(
        f"--tokenizer {str(place)!r} is not known, nor is it a model's folder or a {FILE} on this "
        f"machine; {hint}"
    )


def tokenizer_of_export(export: Place, record: Mapping[str, Any], given: str | None) -> Tokenizer:
    """The tokenizer that an export was made with, to decode its ids.

    Args:
        record: the manifest's section `tokenizer`.
        given: its place as --tokenizer has it, needed where it is none of tiktoken's.

    Raises:
        ConfigError, TokenizerError: if it is not known, cannot be used, or is another.
    """
    name = record["name"]
    if given is None and name not in ENCODINGS:
        raise TokenizerError(
            f"{export} was made with the tokenizer {name!r}, which is not known by its name alone; "
            "give its folder or tokenizer.json as --tokenizer"
        )
    tokenizer = load_tokenizer(name if given is None else given)
    if tokenizer.vocabulary_sha256 == record["vocabulary_sha256"]:
        return tokenizer
    if given is None:
        raise TokenizerError(
            f"{export} was made with another vocabulary under the name {name}; "
            "give its folder or tokenizer.json as --tokenizer"
        )
    raise TokenizerError(
        f"--tokenizer {given!r} is not the tokenizer {name!r} that {export} was made with: "
        "its hash is another"
    )


def check_exported(paths: Iterable[str], tokenizer: Tokenizer) -> None:
    """Raise CorpusError if an export in a corpus has tokens of another tokenizer.

    Args:
        paths: the corpus as it was given.
    """
    for path in paths:
        if not os.path.isfile(os.path.join(path, MANIFEST)) or not os.path.isdir(
            os.path.join(path, TOKENS)
        ):
            continue
        made = read_manifest(Path(path)).tokenizer
        if made["vocabulary_sha256"] != tokenizer.vocabulary_sha256:
            raise CorpusError(
                f"{path} is an export with tokens of {made['name']}, not of {tokenizer.name}; give "
                "--tokenizer of that export"
            )


def check_vocabulary(tokenizer: Tokenizer, rows: int, where: str) -> None:
    """Raise ConfigError if a text may have tokens beyond the rows of an embedding.

    Special tokens do not count, since no text becomes one: published tokenizers name some that
    their model has no row for.

    Args:
        where: whose embedding it is, such as "--weights DIR".
    """
    if tokenizer.rows_needed > rows:
        raise ConfigError(
            f"the tokenizer {tokenizer.name} has ids up to {tokenizer.rows_needed - 1}, more than "
            f"the {rows} rows of the embedding of {where}; give --tokenizer of that model"
        )
