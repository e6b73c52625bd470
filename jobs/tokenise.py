"""The token stage: documents -> one stream of ids, counted on the way."""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.tokens import NO_STARTS, IdSet
from jobs.choose_tokenizer import resolve
from jobs.config import JobConfig
from jobs.cutting import TASK_BYTES, Cut, cuts, read_settings, tasks
from jobs.done import Counts, Done, TokenTotals, totals_of
from jobs.encode import Encoded, EncodeSettings
from jobs.engine import HERE, Engine
from jobs.errors import CorpusError
from jobs.inputs.files import Corpus, InputFile
from jobs.inputs.locations import shown
from jobs.inputs.read import Reader
from jobs.inputs.segments import Ids, Segment
from jobs.pool import Encode
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LISTED = 10  # bad records that the manifest tells one by one
AHEAD = 3  # tasks for each process that are waiting or at work
PARALLEL_BYTES = 4 << 20  # from which on starting processes pays
PACKED = ("parquet",)  # formats that are compressed within
NOTHING = Encoded(np.empty(0, np.uint32), NO_STARTS, 0, ())


class TokenSink(Protocol):
    """What takes the stream: exporters.tokens.TokenWriter, or a TokenCounter for a plan."""

    tokens: int
    documents: int
    seen: IdSet

    def append(self, ids: NDArray[Any], starts: NDArray[np.int64], /) -> None: ...


class TokenCounter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.documents = 0
        self.seen = IdSet()

    def append(self, ids: NDArray[Any], starts: NDArray[np.int64], /) -> None:
        self.tokens += len(ids)
        self.documents += len(starts)
        self.seen.add(ids)


def tokenise(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    sink: TokenSink,
    reporter: Reporter,
    done: Done | None = None,
    on_segment: Callable[[Done, bool], None] = lambda done, whole: None,
    scratch: Path | None = None,
    engine: Engine = HERE,
) -> TokenTotals:
    """Send the tokens of a corpus to a sink, with the end-of-text token between documents.

    Args:
        done: what the sink has already.
        on_segment: told after each segment how far it is, and whether all documents that were
            begun are in the sink, so that the work can go on from there.
        scratch: a folder for what has to be unpacked before it can be read.
        engine: whose workers encode.

    Raises:
        ChangedCorpusError: if the segments that are done are not those of the file now.
        CorpusError: if a file cannot be read, or a record is bad and --bad-records is "fail".
        WorkerError: if a tokenising process dies.
    """
    done = Done() if done is None else done
    reader = Reader(read_settings(config, tokenizer), reporter.note_or_stop, scratch)
    workers = engine.workers or config.workers or _workers(corpus)
    settings = encode_settings(config, tokenizer)
    if workers > 1:
        reporter.note(f"tokenizing with {workers} {engine.name_of_workers}")
    known = None if any(file.bytes is None for file in corpus.files) else corpus.bytes
    with (
        reporter.stage("tokenise", known, "bytes") as stage,
        engine.encoder(workers, resolve(config), tokenizer, settings, reporter.check) as encode,
    ):
        stage.skip(sum(file["bytes"] for file in done.files))
        advanced = 0
        whole = True

        def on_skipped(read: int) -> None:
            nonlocal advanced
            stage.skip(read - advanced)
            advanced = read

        to_encode = cuts(corpus, reader, done, on_skipped)
        for cut, encoded in _encoded(to_encode, encode, AHEAD * workers):
            file = corpus.files[cut.file]
            if cut.segment is None:
                done.files.append(
                    {"name": file.name, "bytes": cut.read, "sha256": cut.digest}
                    | asdict(done.counts)
                )
                done.segments, done.digest, done.counts = 0, "", Counts()
            else:
                if encoded.problem is not None:
                    raise CorpusError(f"{shown(file.location)} {encoded.problem}")
                _take_bad(config, file, encoded, done)
                ids, starts, separators = _join(done, cut.segment, encoded, settings.separator)
                sink.append(ids, starts)
                done.segments, done.digest = done.segments + 1, cut.digest
                done.counts.documents += len(starts)
                done.counts.separators += separators
                done.counts.tokens += len(ids) - separators
                done.counts.replaced_sequences += encoded.replaced
                stage.add(tokens=len(ids))
                where, number = shown(file.location), done.segments
                log.info("%s: segment %d has %d tokens", where, number, len(ids))
                # A document that has begun, but without an id so far, is not in the sink.
                if len(starts) or len(ids):
                    whole = not _is_begun(ids, starts)
                on_segment(done, whole)
            stage(cut.read - advanced)
            advanced = 0 if cut.segment is None else cut.read
    return totals_of(done, sink.seen)


def encode_settings(config: JobConfig, tokenizer: Tokenizer) -> EncodeSettings:
    """How the text of a job becomes ids."""
    return EncodeSettings(
        separator=tokenizer.end_of_text if config.separator == "eot" else None,
        text_field=config.text_field,
        text_errors=config.text_errors,
        max_record_bytes=config.max_record_bytes,
    )


def _join(
    done: Done, segment: Segment, encoded: Encoded, separator: int | None
) -> tuple[NDArray[np.uint32], NDArray[np.int64], int]:
    """Ids and starts of documents as they go into the stream, and the separators among them.

    Between two documents there is one separator: files of ids may end with it already.
    """
    ids, starts = encoded.ids, encoded.starts
    if separator is None:
        return ids, starts, 0
    if isinstance(segment, Ids):
        separators = 0
        if segment.begins and not done.separated:
            ids = np.concatenate([np.array([separator], np.uint32), ids])
            starts, separators = starts + 1, 1
        if _is_begun(ids, starts):
            done.separated = False
        elif len(ids):
            done.separated = bool(ids[-1] == separator)
        return ids, starts, separators
    separators = len(starts)
    if separators and done.separated:
        ids, starts, separators = ids[1:], starts - 1, separators - 1
    done.separated = done.separated and len(starts) == 0
    return ids, starts, separators


def _is_begun(ids: NDArray[np.uint32], starts: NDArray[np.int64]) -> bool:
    """Whether the last document has begun, but without an id so far."""
    return len(starts) > 0 and bool(starts[-1] == len(ids))


def _take_bad(config: JobConfig, file: InputFile, encoded: Encoded, done: Done) -> None:
    """Count bad records; the first of all are listed.

    Raises:
        CorpusError: if --bad-records is "fail" and there is one.
    """
    if encoded.bad and config.bad_records == "fail":
        bad = encoded.bad[0]
        raise CorpusError(
            f"{shown(file.location)}: {bad.place} {bad.reason}; mend it, or give --bad-records skip"
        )
    done.counts.bad_records += len(encoded.bad)
    for bad in encoded.bad[: LISTED - len(done.listed)]:
        done.listed.append({"file": file.name, "place": bad.place, "reason": bad.reason})


def _encoded(to_encode: Iterator[Cut], encode: Encode, most: int) -> Iterator[tuple[Cut, Encoded]]:
    """Each segment with its ids, in order; at most `most` tasks are under way."""
    waiting: deque[tuple[list[Cut], Callable[[], list[Encoded]]]] = deque()
    for task in tasks(to_encode):
        texts = [cut.segment for cut in task if cut.segment and not isinstance(cut.segment, Ids)]
        waiting.append((task, encode(texts) if texts else list[Encoded]))
        if len(waiting) >= most:
            yield from _results(*waiting.popleft())
    while waiting:
        yield from _results(*waiting.popleft())


def _results(task: list[Cut], result: Callable[[], list[Encoded]]) -> Iterator[tuple[Cut, Encoded]]:
    texts = iter(result())
    for cut in task:
        match cut.segment:
            case None:
                yield cut, NOTHING
            case Ids():
                yield cut, Encoded(cut.segment.ids, cut.segment.starts, 0, ())
            case _:
                yield cut, next(texts)


def _workers(corpus: Corpus) -> int:
    """As many processes as there are cores, or tasks; but one for what is read in a moment."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    files = corpus.files
    if any(file.compression or file.bytes is None for file in files):
        return cores
    if corpus.bytes < PARALLEL_BYTES:
        return 1
    if any(file.format in PACKED for file in files):
        return cores
    return min(cores, -(-corpus.bytes // TASK_BYTES))
