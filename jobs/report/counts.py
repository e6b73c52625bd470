"""What the token stream of an export is made of: how often tokens occur, how long documents are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.tablefile import MOST_IDS
from exporters.tokens import TokenStream

STEP = 1 << 22  # tokens that are held at once


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts over the whole stream.

    ids         int64 [U], the tokens that occur, the most frequent first
    times       int64 [U], how often each does
    lengths     int64 [64], documents by their tokens and the separator behind them: [0] of none,
                [b] of 2^(b-1) to 2^b - 1
    longest     tokens of the longest document
    """

    ids: NDArray[np.int64]
    times: NDArray[np.int64]
    lengths: NDArray[np.int64]
    longest: int


def count(root: Place, stream: TokenStream, advance: Callable[[int], None]) -> Counts:
    """Count the tokens and documents of a stream, a part at a time; `advance` is told of tokens.

    Raises:
        ExportError: if it cannot be read, or holds ids beyond any vocabulary.
    """
    times = _times(root, stream, advance)
    ids = np.flatnonzero(times)
    ids = ids[np.argsort(-times[ids], kind="stable")]
    lengths, longest = _lengths(stream)
    return Counts(ids=ids, times=times[ids], lengths=lengths, longest=longest)


def thinned(length: int, most: int) -> NDArray[np.int64]:
    """Ranks from 1 to length, all or about `most`, evenly spread on a scale of logarithms."""
    if length <= most:
        return np.arange(1, length + 1)
    return np.unique(np.round(np.geomspace(1, length, most)).astype(np.int64))


def _times(root: Place, stream: TokenStream, advance: Callable[[int], None]) -> NDArray[np.int64]:
    """How often each id occurs, [largest id + 1]."""
    times = np.zeros(0, np.int64)
    for start in range(0, stream.tokens, STEP):
        stop = min(start + STEP, stream.tokens)
        ids = stream.read(start, stop).numpy()
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= MOST_IDS:
            raise ExportError(
                f"{root} has the token {low if low < 0 else high}, which is beyond any vocabulary; "
                f"run qkvmill verify {root}"
            )
        if high >= len(times):
            times = np.pad(times, (0, high + 1 - len(times)))
        times += np.bincount(ids, minlength=len(times))
        advance(stop - start)
    return times


def _lengths(stream: TokenStream) -> tuple[NDArray[np.int64], int]:
    """Documents by the bits of their length, and the longest."""
    bins, longest = np.zeros(64, np.int64), 0

    def add(lengths: NDArray[Any]) -> None:
        nonlocal bins, longest
        if len(lengths):
            longest = max(longest, int(lengths.max()))
            bins += np.bincount(np.frexp(lengths)[1], minlength=len(bins))

    last = np.empty(0, np.int64)
    for part in stream.document_start_parts():
        starts = np.concatenate([last, part.numpy()])
        add(np.diff(starts))
        last = starts[-1:]
    add(stream.tokens - last)
    return bins, longest
