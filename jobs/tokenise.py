"""The token stage: documents -> one stream of ids, counted on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.tokens import IdSet
from jobs.config import JobConfig
from jobs.corpus import Corpus, TextFile, TextRecord, read_text
from jobs.errors import CorpusError, TokenizerError
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer, encode


class TokenSink(Protocol):
    """What takes the stream: exporters.tokens.TokenWriter, or a TokenCounter for a plan."""

    tokens: int
    documents: int
    seen: IdSet

    def start_document(self) -> None: ...

    def append(self, ids: NDArray[Any], /) -> None: ...


class TokenCounter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.documents = 0
        self.seen = IdSet()

    def start_document(self) -> None:
        self.documents += 1

    def append(self, ids: NDArray[Any], /) -> None:
        self.tokens += len(ids)
        self.seen.add(ids)


@dataclass(frozen=True, kw_only=True)
class TokenTotals:
    """What a corpus came to."""

    tokens: int
    documents: int
    separators: int
    seen: IdSet
    replaced_sequences: int  # stretches of bytes that were not UTF-8, each now one U+FFFD
    files: tuple[dict[str, Any], ...]  # name, bytes, sha256, tokens, replaced_sequences

    @property
    def largest_id(self) -> int:
        return self.seen.largest


def tokenise(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    sink: TokenSink,
    reporter: Reporter,
    files: list[dict[str, Any]] | None = None,
) -> TokenTotals:
    """Send the tokens of a corpus to a sink, with the end-of-text token between documents.

    Args:
        files: records of the first files, whose tokens the sink has; those of others are added.

    Raises:
        CorpusError: if a document cannot be read or encoded.
    """
    files = [] if files is None else files
    with reporter.stage("tokenise", corpus.bytes, "bytes") as advance:
        advance(sum(file["bytes"] for file in files))
        for index, file in enumerate(corpus.files[len(files) :], len(files)):
            record = TextRecord()
            if index and config.separator == "eot":
                sink.append(np.array([tokenizer.end_of_text]))
            sink.start_document()
            before, advanced = sink.tokens, 0
            for ids in _encode(file, config, tokenizer, record):
                sink.append(ids)
                advance(record.bytes - advanced)
                advanced = record.bytes
            files.append(
                {
                    "name": file.name,
                    "bytes": record.bytes,
                    "sha256": record.digest.hexdigest(),
                    "tokens": sink.tokens - before,
                    "replaced_sequences": record.replaced,
                }
            )
    return totals_of(config, files, sink.seen)


def totals_of(config: JobConfig, files: list[dict[str, Any]], seen: IdSet) -> TokenTotals:
    """What a corpus came to, from the records of its files; each is one document."""
    separators = max(0, len(files) - 1) if config.separator == "eot" else 0
    return TokenTotals(
        tokens=sum(file["tokens"] for file in files) + separators,
        documents=len(files),
        separators=separators,
        seen=seen,
        replaced_sequences=sum(file["replaced_sequences"] for file in files),
        files=tuple(files),
    )


def _encode(
    file: TextFile, config: JobConfig, tokenizer: Tokenizer, record: TextRecord
) -> Iterator[NDArray[Any]]:
    """The ids of one document, stretch by stretch."""
    try:
        yield from encode(tokenizer, read_text(file, config.text_errors, record))
    except TokenizerError as error:
        raise CorpusError(f"{file.path} holds, before byte {record.bytes}, {error}") from error
