"""How many tokens a corpus has, from a sample of its bytes, and how far that may be off."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
from numpy.typing import NDArray

from exporters.tokens import IdSet
from jobs.config import JobConfig
from jobs.cutting import read_settings
from jobs.inputs.files import Corpus, InputFile
from jobs.inputs.locations import shown
from jobs.inputs.opening import FileRead, open_seekable, open_stored
from jobs.prefixes import IDS, parquet_start, safetensors_start, start_of
from jobs.probes import PROBE_BYTES, Probe, Prober, lines_at, stored_size, text_at
from jobs.progress import Reporter
from jobs.tokenise import encode_settings
from jobs.tokenizer import Tokenizer

WHOLE_BYTES = 16_000_000  # up to which a corpus is read as a whole
COMPRESSED_TIMES = 8  # what a compressed byte counts there
PLACES = 64
NORMAL_95 = 1.96  # standard errors on both sides that hold 95% of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a corpus comes to, as its sample says.

    `lengths` are the tokens of documents of the sample, each with the separator after it, and
    `weights` how many documents of the corpus each stands for.
    """

    tokens: int
    tokens_error: int  # the true number lies within it of `tokens` in 95 of 100 corpora
    documents: int
    distinct_tokens: int
    largest_id: int  # of the sample
    sampled_bytes: int
    bad_records: int  # in the sample
    obstacle: str | None  # the first bad record, if --bad-records is "fail"
    lengths: NDArray[np.int64]
    weights: NDArray[np.float64]


def needs_no_sample(corpus: Corpus) -> bool:
    """Whether a corpus is so small, or can only be read so, that it is read as a whole."""
    if any(file.bytes is None for file in corpus.files):
        return True
    weighed = sum(
        (file.bytes or 0) * (COMPRESSED_TIMES if file.compression else 1) for file in corpus.files
    )
    return weighed <= WHOLE_BYTES


def estimate(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    reporter: Reporter,
    probe_bytes: int = PROBE_BYTES,
) -> Estimate | None:
    """Estimate a corpus from so many bytes at each of PLACES places; None if no record is there.

    The bytes of all files, as they are stored, are laid end to end and cut into as many equal
    stretches; in each one place is drawn, the same each time. The tokens are those of a byte at the
    places together times the bytes, a ratio estimate (Cochran, Sampling Techniques, 3rd ed. 1977,
    section 6.3). Files that are read from their start add the spread between its parts to the error
    as if they were one part, for they lie side by side: what comes later and is of another kind
    than the whole start cannot be told.

    Raises:
        CorpusError: if a file of the sample cannot be read.
    """
    prober = Prober(
        reading=read_settings(config, tokenizer),
        encoding=encode_settings(config, tokenizer),
        tokenizer=tokenizer,
        note=reporter.note,
        bytes=probe_bytes,
    )
    probes: list[tuple[InputFile, Probe]] = []
    with reporter.stage("estimate", PLACES, "places") as stage:
        for file, places in _places([file.bytes or 0 for file in corpus.files]):
            for found in _probe(corpus.files[file], places, prober):
                probes.append((corpus.files[file], found))
                stage.add(tokens=len(found.ids))
                stage(found.places)
    return _estimate(config, corpus, tokenizer, probes)


def _places(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Files, counted from 0, in which places were drawn, and the places in each, ascending."""
    ends = list(accumulate(sizes))
    drawn = (np.arange(PLACES) + np.random.default_rng(0).random(PLACES)) * (ends[-1] / PLACES)
    places = np.minimum(drawn.astype(np.int64), ends[-1] - 1)
    files = np.searchsorted(ends, places, side="right").tolist()
    pairs = zip(files, places.tolist(), strict=True)
    return [
        (file, [place - ends[file] + sizes[file] for _, place in group])
        for file, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def _probe(file: InputFile, places: Sequence[int], prober: Prober) -> Iterator[Probe]:
    """What stands at places of a file, which are bytes of it as it is stored, ascending.

    Raises:
        CorpusError: if it cannot be read, or is not what its name says.
    """
    if file.format == "parquet" and file.compression is not None:
        with open_seekable(file, FileRead(), prober.note, None) as stream:
            yield parquet_start(file, stream, len(places), prober)
        return
    with open_stored(file, prober.note) as stream:
        if file.format == "parquet":
            yield parquet_start(file, stream, len(places), prober)
        elif file.format == "safetensors":
            yield safetensors_start(file, stream, len(places), prober)
        elif file.compression is not None or file.format not in ("text", "jsonl"):
            yield start_of(file, stream, len(places), prober)
        else:
            enter = text_at if file.format == "text" else lines_at
            size = stored_size(file)
            if size <= prober.bytes:
                yield enter(file, stream, 0, len(places), prober)
                return
            for place in places:
                at = min(max(0, place - prober.bytes // 2), size - prober.bytes)
                yield enter(file, stream, at, 1, prober)


def _estimate(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    probes: Sequence[tuple[InputFile, Probe]],
) -> Estimate | None:
    found = [part for _, part in probes]
    places = np.array([part.places for part in found], np.float64)
    whole = len(found) == len(corpus.files) and all(part.whole for part in found)
    if whole:
        places = np.array([part.bytes * PLACES / corpus.bytes for part in found])
    taken = np.array([part.taken / part.bytes for part in found])
    tokens = np.array([part.tokens / part.bytes for part in found])
    covered = float(places @ taken)
    if not covered:
        return None
    ratio = float(places @ tokens) / covered
    spreads = np.array([part.spread for part in found])
    # Squares of the standard error of the sum: of places that are far apart, and of those that are
    # side by side at a file's start.
    apart = PLACES * float(places @ (tokens - ratio * taken) ** 2) / (PLACES - 1)
    aside = float((places**2 - places) @ spreads**2)
    error = 0.0 if whole else NORMAL_95 * corpus.bytes * math.sqrt(apart + aside) / covered

    records = np.array([part.documents / part.bytes for part in found])
    texts = np.array([file.format == "text" for file, _ in probes])
    all_texts = sum(file.format == "text" for file in corpus.files)
    documents = all_texts + corpus.bytes * float((places * ~texts) @ records) / covered
    separators = all_texts if config.separator == "eot" else 0
    if config.separator == "eot" and corpus.files[0].format not in (*IDS, "safetensors"):
        separators -= 1  # the first document has none before it
    count = round(corpus.bytes * ratio) + separators
    seen = IdSet()
    for part in found:
        seen.add(part.ids)
    if separators > 0 and tokenizer.end_of_text is not None:
        seen.add(np.array([tokenizer.end_of_text]))
    bad = [
        f"{shown(file.location)}: {record.place} {record.reason}; mend it, or give --bad-records "
        "skip"
        for file, part in probes
        for record in part.bad
    ]
    return Estimate(
        tokens=count,
        tokens_error=round(error),
        documents=round(documents),
        distinct_tokens=_distinct(found, count, len(seen), tokenizer.rows_needed),
        largest_id=seen.largest,
        sampled_bytes=min(corpus.bytes, round(sum(part.looked_at for part in found))),
        bad_records=len(bad),
        obstacle=bad[0] if bad and config.bad_records == "fail" else None,
        lengths=np.concatenate([part.lengths for part in found]),
        weights=_weights(found, places, corpus.bytes / covered),
    )


def _weights(
    found: Sequence[Probe], places: NDArray[np.float64], stretch: float
) -> NDArray[np.float64]:
    """How many documents each one in the sample stands for; a place stands for `stretch` bytes."""
    counts = [len(part.lengths) for part in found]
    documents = np.array([part.documents / part.bytes for part in found])
    return np.repeat(places * stretch * documents / np.maximum(1, counts), counts)


def _distinct(found: Sequence[Probe], tokens: int, seen: int, most: int) -> int:
    """The distinct tokens among so many, of which the sample holds `seen`; at most `most`.

    By Heaps' law (Herdan, Type-Token Mathematics, 1960; Heaps, Information Retrieval, 1978) the
    distinct ones among N tokens grow as N^b; b is what half of the sample and all of it give. A
    vocabulary that is nearly used up grows more slowly, so the number is rather too large.
    """
    half = IdSet()
    for part in found:
        half.add(part.ids[: len(part.ids) // 2])
    looked_at = sum(len(part.ids) for part in found)
    looked_at_half = sum(len(part.ids) // 2 for part in found)
    if not len(half) or tokens <= looked_at:
        return seen
    exponent = math.log(seen / len(half)) / math.log(looked_at / looked_at_half)
    grown = seen * math.pow(tokens / looked_at, exponent)
    return min(max(seen, most), round(grown))
