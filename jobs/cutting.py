"""A corpus -> segments that are still to be encoded, in tasks for workers."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from jobs.config import JobConfig
from jobs.done import Done
from jobs.errors import ChangedCorpusError
from jobs.inputs.files import Corpus
from jobs.inputs.locations import shown
from jobs.inputs.opening import FileRead
from jobs.inputs.read import Reader
from jobs.inputs.segments import Ids, ReadSettings, Segment, update
from jobs.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TASK_BYTES = 1 << 19  # of segments that a process is given at once


@dataclass(frozen=True)
class Cut:
    """A segment on its way: how much of its file was read by then, and the hash of all so far."""

    file: int
    segment: Segment | None  # None: the file's end
    read: int
    digest: str


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


def cuts(
    corpus: Corpus, reader: Reader, done: Done, on_skipped: Callable[[int], None]
) -> Iterator[Cut]:
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
            yield Cut(index, segment, record.bytes, digest.hexdigest())
        yield Cut(index, None, record.bytes, record.digest.hexdigest())


def _goes_on(before: str, location: str) -> bool:
    """Whether two token files that follow each other may be parts of one stream."""
    return before.rpartition("/")[0] == location.rpartition("/")[0] and before < location


def tasks(found: Iterator[Cut]) -> Iterator[list[Cut]]:
    """Segments in their order, as many together as are worth a task of their own."""
    task: list[Cut] = []
    size = 0
    for cut in found:
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
