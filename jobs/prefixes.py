"""What the start of a file says of all of it, where it can be entered nowhere else."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from exporters.tokens import NO_STARTS
from jobs.inputs.compression import FEED_BYTES, inflated
from jobs.inputs.files import InputFile
from jobs.inputs.ids import bin_ids, documents_of, npy_ids, stream_tensors
from jobs.inputs.lines import line_blocks
from jobs.inputs.locations import shown
from jobs.inputs.parquet import parquet_rows, parquet_texts
from jobs.inputs.rows import rows
from jobs.inputs.segments import Lines, TextPiece, Texts, read_exactly
from jobs.inputs.source import Source
from jobs.inputs.text import text_pieces
from jobs.probes import (
    Probe,
    Prober,
    encode_at,
    last_character,
    lengths_of,
    stored_size,
)

RATIO_BYTES = 1 << 20  # of a compressed file, after which it is known how well it is compressed
MOST_BYTES = 64 << 20  # decompressed to that end

PARTS = 8  # segments of a file's start, for each place

IDS = ("npy", "bin")
NO_IDS: NDArray[np.uint32] = np.empty(0, np.uint32)
CUT_SHORT = "cut short"  # what is said of a row whose quotes are open where a file ends


def start_of(file: InputFile, stream: BinaryIO, places: int, prober: Prober) -> Probe:
    """The start of a file, as long as the stretches at so many places are together.

    Records are taken to the end of the one in which it ends: without it, long ones would be too
    few.
    """
    least = places * prober.bytes
    size = least if file.format in (*IDS, "text") else 2 * least
    while True:
        held, whole, stored = _prefix(file, stream, size)
        if file.format in IDS:
            return _ids(file, held, whole, stored, places, prober)
        end = len(held) if whole else _end(file.format, held, least)
        if end:
            break
        if size > prober.reading.max_record_bytes:
            end = len(held)  # then a record is too long, and is said to be
            break
        size *= 4
    segments, covered = _segments(file, held[:end], whole, prober)
    sizes = [len(segment.data) for segment in segments]
    return _from_start(file, segments, sizes, covered * stored, whole, places, prober)


def _end(kind: str, held: bytes, least: int) -> int:
    """Where the first record ends that goes to byte `least`, or 0; of a text, its last character.

    No row of CSV ends where an odd number of quotes went before.
    """
    if kind == "text":
        return last_character(held)
    end, quotes = least - 1, held.count(b'"', 0, least - 1)
    while (found := held.find(b"\n", end) + 1) and kind != "jsonl":
        quotes += held.count(b'"', end, found)
        if quotes % 2 == 0:
            break
        end = found
    return found


def _prefix(file: InputFile, stream: BinaryIO, least: int) -> tuple[bytes, bool, float]:
    """The first bytes of a file, decompressed.

    Returns `least` of them, or all; whether they are all; and how many bytes are stored for each.
    """
    size = stored_size(file)
    stream.seek(0)
    if file.compression is None:
        held = read_exactly(stream, least)
        return held, len(held) == size, 1.0
    blocks = iter(partial(read_exactly, stream, FEED_BYTES), b"")
    source = Source(shown(file.location), blocks)
    kept = bytearray()
    count = 0
    for piece in inflated(source, file.compression):
        kept += piece[: least - len(kept)]
        count += len(piece)
        known = source.place >= RATIO_BYTES or count >= MOST_BYTES
        if len(kept) == least and known and source.place < size:
            return bytes(kept), False, source.place / count
    return bytes(kept), len(kept) == count, size / max(1, count)


def _segments(
    file: InputFile, held: bytes, whole: bool, prober: Prober
) -> tuple[Sequence[TextPiece | Lines | Texts], int]:
    """The segments of whole records, which a file begins with, and the bytes they take."""
    where, settings, block = shown(file.location), prober.reading, prober.bytes // PARTS
    stream = io.BytesIO(held)
    if file.format == "text":
        # Where pieces end matters little for their number of tokens.
        pieces = text_pieces(where, stream, replace(settings, cuttable=True), block)
        return [replace(piece, begins=False) for piece in pieces], len(held)
    if file.format == "jsonl":
        return list(line_blocks(stream, settings.max_record_bytes, block)), len(held)
    texts = list(rows(where, stream, "," if file.format == "csv" else "\t", settings, block))
    if not whole and texts and texts[-1].bad and CUT_SHORT in texts[-1].bad[-1].reason:
        # Quotes that quote nothing went before: the end lies within the last row.
        *bad, last = texts[-1].bad
        texts[-1] = replace(texts[-1], bad=tuple(bad))
        before = held.split(b"\n")[: int(last.place.removeprefix("line ")) - 1]
        return texts, sum(len(line) + 1 for line in before)
    return texts, len(held)


def parquet_start(file: InputFile, stream: BinaryIO, places: int, prober: Prober) -> Probe:
    """The first rows of a Parquet file; it says itself how many it has."""
    where, size = shown(file.location), stored_size(file)
    total = parquet_rows(where, stream)
    segments: list[Texts] = []
    held = 0
    for texts in parquet_texts(where, stream, prober.reading, prober.bytes // PARTS):
        segments.append(texts)
        held += len(texts.data)
        if held >= places * prober.bytes:
            break
    counts = [len(texts.ends) + len(texts.bad) for texts in segments]
    share = sum(counts) / total if total else 1.0
    return _from_start(file, segments, counts, size * share, share == 1.0, places, prober)


def _from_start(
    file: InputFile,
    segments: Sequence[TextPiece | Lines | Texts],
    sizes: Sequence[int],
    stored: float,
    whole: bool,
    places: int,
    prober: Prober,
) -> Probe:
    """What segments from a file's start, of some sizes, say of it; they take `stored` bytes."""
    size = stored_size(file)
    stored = size if whole else max(1.0, stored)
    encoded = [encode_at(shown(file.location), segment, prober) for segment in segments]
    counts = [len(part.ids) for part in encoded]
    lengths = np.concatenate([NO_STARTS, *(lengths_of(part, prober) for part in encoded)])
    documents: float = len(lengths)
    if file.format == "text":
        documents = stored / size
        lengths = np.array([round(sum(counts) * size / stored)], np.int64)
    return Probe(
        places=places,
        looked_at=stored,
        bytes=stored,
        taken=stored,
        tokens=sum(counts),
        documents=documents,
        ids=np.concatenate([NO_IDS, *(part.ids for part in encoded)]),
        lengths=lengths,
        spread=_spread(counts, sizes, places) * sum(counts) / stored * (1 - stored / size) ** 0.5,
        bad=tuple(bad for part in encoded for bad in part.bad),
        whole=whole,
    )


def _spread(counts: Sequence[int], sizes: Sequence[int], places: int) -> float:
    """How much parts of a start, as long as what stands at a place, differ, in parts of the whole.

    It is the standard deviation of their tokens for each unit of size.
    """
    parts = min(places, len(counts))
    groups = zip(np.array_split(counts, parts), np.array_split(sizes, parts), strict=True)
    rates = [part.sum() / max(1, size.sum()) for part, size in groups]
    if parts < 2 or not sum(counts):
        return 0.0
    return float(np.std(rates, ddof=1) / (sum(counts) / max(1, sum(sizes))))


def _ids(
    file: InputFile, held: bytes, whole: bool, stored: float, places: int, prober: Prober
) -> Probe:
    """The start of a file of nothing but ids, whose size tells how many there are."""
    size, where = stored_size(file), shown(file.location)
    read = npy_ids if file.format == "npy" else bin_ids
    stream, block = io.BytesIO(held), prober.bytes // PARTS
    # The last block of a start may be cut short.
    most = None if whole else max(1, len(held) // block - 1)
    segments = read(where, stream, prober.reading, block)
    first = next(segments)
    header = stream.tell() - block
    parts = [first, *islice(segments, None if most is None else most - 1)]
    ids = np.concatenate([part.ids for part in parts])
    tokens: float = len(ids)
    if not whole:
        tokens = (size / stored - header) * len(first.ids) / block
    return _of_ids(size, ids, sum(len(part.starts) for part in parts), tokens, whole, places)


def safetensors_start(file: InputFile, stream: BinaryIO, places: int, prober: Prober) -> Probe:
    """The first of a file's input_ids; its header says how many there are."""
    where, size = shown(file.location), stored_size(file)
    entry, dtype, starts = stream_tensors(where, stream)
    count = entry.shape[0]
    stream.seek(entry.first_byte)
    taken = min(count, places * prober.bytes // dtype.itemsize)
    values = np.frombuffer(read_exactly(stream, taken * dtype.itemsize), dtype)
    parts = list(documents_of(where, iter([values] if taken else []), prober.reading))
    ids = np.concatenate([part.ids for part in parts])
    begun: float = sum(len(part.starts) for part in parts)
    if starts is not None:
        begun = 1 + (starts.shape[0] - 1) * taken / max(1, count)
    return _of_ids(size, ids, begun, count, taken == count, places)


def _of_ids(
    size: int, ids: NDArray[np.uint32], begun: float, tokens: float, whole: bool, places: int
) -> Probe:
    """A file with so many tokens, in the first of which so many documents begin."""
    documents = 1 + (begun - 1) * tokens / max(1, len(ids))
    return Probe(
        places=places,
        looked_at=size * len(ids) / max(1, tokens),
        bytes=size,
        taken=size,
        tokens=tokens,
        documents=documents,
        ids=ids,
        lengths=np.array([round(tokens / max(1, documents))], np.int64),
        whole=whole,
    )
