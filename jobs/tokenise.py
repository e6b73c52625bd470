"""The token stage: documents -> one stream of ids, counted on the way."""

import hashlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.tokens import NO_STARTS, IdSet
from jobs.choose_tokenizer import resolve
from jobs.config import JobConfig
from jobs.encode import Encoded, EncodeSettings
from jobs.engine import HERE, Engine
from jobs.errors import ChangedCorpusError, CorpusError
from jobs.inputs.files import Corpus, InputFile
from jobs.inputs.locations import shown
from jobs.inputs.opening import FileRead
from jobs.inputs.read import Reader
from jobs.inputs.segments import Ids, ReadSettings, Segment, update
from jobs.pool import Encode
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LISTED = 10  # bad records that the manifest tells one by one
TASK_BYTES = 1 << 19  # of segments that a process is given at once
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


@dataclass
class Counts:
    """What a file, or a part of it, came to."""

    documents: int = 0
    tokens: int = 0  # without the separators
    separators: int = 0  # that the job put between documents
    replaced_sequences: int = 0  # stretches of bytes that were no text, each now one U+FFFD
    bad_records: int = 0


@dataclass
class Done:
    """How far a corpus is tokenised: whole files, and segments of the next."""

    files: list[dict[str, Any]] = field(
        default_factory=list
    )  # of each: name, bytes, sha256, Counts
    segments: int = 0
    digest: str = ""  # of these segments
    counts: Counts = field(default_factory=Counts)  # of these segments
    separated: bool = True  # whether the next document needs no separator before it
    listed: list[dict[str, str]] = field(default_factory=list)  # the first bad records of all

    def total(self) -> Counts:
        """What all of it came to."""
        names = Counts.__dataclass_fields__
        files = [*self.files, asdict(self.counts)]
        return Counts(**{name: sum(file[name] for file in files) for name in names})

    def copy(self) -> "Done":
        """As it is now, but with the same list of files, to which more are added at its end."""
        return replace(self, counts=replace(self.counts), listed=self.listed[:])


@dataclass(frozen=True, kw_only=True)
class TokenTotals:
    """What a corpus came to."""

    tokens: int
    documents: int
    separators: int
    seen: IdSet
    replaced_sequences: int
    bad_records: int
    listed: tuple[dict[str, str], ...]  # the first of the bad records: file, place, reason
    files: tuple[dict[str, Any], ...]

    @property
    def largest_id(self) -> int:
        return self.seen.largest


@dataclass(frozen=True)
class _Cut:
    """A segment on its way: how much of its file was read by then, and the hash of all so far."""

    file: int
    segment: Segment | None  # None: the file's end
    read: int
    digest: str


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

        cuts = _cuts(corpus, reader, done, on_skipped)
        for cut, encoded in _encoded(cuts, encode, AHEAD * workers):
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


def totals_of(done: Done, seen: IdSet) -> TokenTotals:
    """What a corpus that is tokenised to its end came to."""
    total = done.total()
    return TokenTotals(
        tokens=total.tokens + total.separators,
        documents=total.documents,
        separators=total.separators,
        seen=seen,
        replaced_sequences=total.replaced_sequences,
        bad_records=total.bad_records,
        listed=tuple(done.listed),
        files=tuple(done.files),
    )


def read_settings(config: JobConfig, tokenizer: Tokenizer) -> ReadSettings:
    """How the files of a job are read."""
    return ReadSettings(
        text_field=config.text_field,
        text_errors=config.text_errors,
        token_dtype=config.token_dtype,
        max_record_bytes=config.max_record_bytes,
        cuttable=tokenizer.cuttable,
        end_of_text=tokenizer.end_of_text,
        vocabulary_size=tokenizer.vocabulary_size,
        tokenizer=tokenizer.name,
    )


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


def _cuts(
    corpus: Corpus, reader: Reader, done: Done, on_skipped: Callable[[int], None]
) -> Iterator[_Cut]:
    """The segments that are still to be encoded, in order, and the ends of files.

    `on_skipped` is told, after each segment that is done, how much of its file was read by then.
    """
    finished, expected = len(done.files), done.digest  # who takes the segments changes done
    held = [file["tokens"] for file in done.files]
    to_skip = done.segments
    before = ""
    base = 0  # tokens in the files of the same stream before this one
    for index, file in enumerate(corpus.files):
        if file.format != "safetensors" or not _goes_on(before, file.location):
            base = 0
        before = file.location
        if index < finished:
            base += held[index]
            continue
        skipped = to_skip if index == finished else 0
        record, digest = FileRead(), hashlib.sha256()
        log.info("reading %s as %s, from segment %d on", shown(file.location), file.format, skipped)
        count = 0
        segments = reader.segments(file, record, base)
        for segment in islice(segments, skipped):
            update(digest, segment)
            count += 1
            base += len(segment.ids) if isinstance(segment, Ids) else 0
            on_skipped(record.bytes)
        if count < skipped or (skipped and digest.hexdigest() != expected):
            raise ChangedCorpusError(shown(file.location))
        for segment in segments:
            update(digest, segment)
            base += len(segment.ids) if isinstance(segment, Ids) else 0
            yield _Cut(index, segment, record.bytes, digest.hexdigest())
        yield _Cut(index, None, record.bytes, record.digest.hexdigest())


def _goes_on(before: str, location: str) -> bool:
    """Whether two token files that follow each other may be parts of one stream."""
    return before.rpartition("/")[0] == location.rpartition("/")[0] and before < location


def _encoded(cuts: Iterator[_Cut], encode: Encode, most: int) -> Iterator[tuple[_Cut, Encoded]]:
    """Each segment with its ids, in order; at most `most` tasks are under way."""
    waiting: deque[tuple[list[_Cut], Callable[[], list[Encoded]]]] = deque()
    for task in _tasks(cuts):
        texts = [cut.segment for cut in task if cut.segment and not isinstance(cut.segment, Ids)]
        waiting.append((task, encode(texts) if texts else list[Encoded]))
        if len(waiting) >= most:
            yield from _results(*waiting.popleft())
    while waiting:
        yield from _results(*waiting.popleft())


def _tasks(cuts: Iterator[_Cut]) -> Iterator[list[_Cut]]:
    """Segments in their order, as many together as are worth a task of their own."""
    task: list[_Cut] = []
    size = 0
    for cut in cuts:
        task.append(cut)
        match cut.segment:
            case Ids():
                size += cut.segment.ids.nbytes
            case None:
                size += 1 << 10  # so that the ends of tiny files add up too
            case _:
                size += len(cut.segment.data)
        if size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _results(
    task: list[_Cut], result: Callable[[], list[Encoded]]
) -> Iterator[tuple[_Cut, Encoded]]:
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
