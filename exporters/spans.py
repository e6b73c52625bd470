"""Which windows spans of the token stream hold; a span is a document or the whole stream.

A span of n tokens holds n - 1 pairs of an input and its target. Its windows of T pairs begin at 0,
stride, 2 * stride ... while T + 1 tokens are left. With padding one more begins at the next of
these places, unless every pair is in a window already or none is left there; it holds the
pairs that are left, fewer than T.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 18  # spans, or windows, whose places are held at once
LARGEST = 2**63 - 1  # of an int64


class Spans(NamedTuple):
    """Some spans in the order of the stream."""

    start: Tensor  # int64 [S], places in the stream
    length: Tensor  # int64 [S], tokens


class Places(NamedTuple):
    """Where some windows lie."""

    start: Tensor  # int64 [W], places in the stream
    pairs: Tensor  # int64 [W], real pairs of an input and its target, 1 to T


@dataclass(frozen=True, kw_only=True)
class WindowRule:
    """How spans are cut into windows; drawn ones may begin anywhere, which is a stride of 1."""

    context_length: int
    stride: int
    split: bool  # whether documents are the spans, or the whole stream is one
    pad: bool
    most: int | None = None  # windows, over all spans


@dataclass(frozen=True, kw_only=True)
class WindowCounts:
    """What spans came to, a chunk of them after the other."""

    windows: int = 0
    padded_windows: int = 0
    padded_places: int = 0  # of windows, beyond their real pairs
    held_tokens: int = 0  # tokens of the stream in windows, as input or as target
    fruitful_spans: int = 0  # long enough for a window
    longest_span: int = 0  # tokens


def document_spans(starts: Iterable[Tensor], tokens: int) -> Iterator[Spans]:
    """The documents of a stream of so many tokens, each up to where the next begins; BLOCK at most.

    Args:
        starts: where documents begin, int64, part of the stream by part.
    """
    begun = torch.empty(0, dtype=torch.int64)
    for part in starts:
        bounds = torch.cat([begun, part])
        for first in range(0, len(bounds) - 1, BLOCK):
            some = bounds[first : first + BLOCK + 1]
            yield Spans(some[:-1], some.diff())
        begun = bounds[-1:]
    yield Spans(begun, tokens - begun)


def whole_stream(tokens: int) -> Iterator[Spans]:
    """The one span of a stream that is not split."""
    yield Spans(torch.tensor([0]), torch.tensor([tokens]))


def count_more(counts: WindowCounts, lengths: Tensor, rule: WindowRule) -> WindowCounts:
    """The counts with those of the next spans added; lengths are of tokens, int64 [S]."""
    if len(lengths) == 0:
        return counts
    length, stride = rule.context_length, rule.stride
    inside = _windows_in(lengths, rule)
    taken = inside
    if rule.most is not None:
        before = inside.cumsum(0) - inside
        left = min(rule.most, LARGEST) - counts.windows
        taken = torch.minimum(inside, (left - before).clamp(min=0))
    last_pairs = (lengths - 1 - (taken - 1) * stride).clamp(max=length)
    held = (taken - 1) * min(stride, length + 1) + last_pairs + 1
    short = last_pairs[(taken > 0) & (last_pairs < length)]
    return WindowCounts(
        windows=counts.windows + int(taken.sum()),
        padded_windows=counts.padded_windows + len(short),
        padded_places=counts.padded_places + len(short) * length - int(short.sum()),
        held_tokens=counts.held_tokens + int(held[taken > 0].sum()),
        fruitful_spans=counts.fruitful_spans + int((inside > 0).sum()),
        longest_span=max(counts.longest_span, int(lengths.max())),
    )


def count_windows(spans: Iterable[Spans], rule: WindowRule) -> WindowCounts:
    """What all spans come to."""
    counts = WindowCounts()
    for chunk in spans:
        counts = count_more(counts, chunk.length, rule)
    return counts


def list_windows(spans: Iterable[Spans], rule: WindowRule) -> Iterator[Places]:
    """Where the windows of all spans lie, in order, at most BLOCK at once."""
    left = rule.most
    for chunk in spans:
        inside = _windows_in(chunk.length, rule)
        ends = inside.cumsum(0)
        total = int(inside.sum())
        if left is not None:
            total = min(total, left)
            left -= total
        for first in range(0, total, BLOCK):
            index = torch.arange(first, min(first + BLOCK, total))
            yield _places(chunk, inside, ends, index, rule)


def find_windows(spans: Iterable[Spans], rule: WindowRule, index: Tensor) -> Places:
    """Where the windows of these numbers lie, int64 [W], counted from 0 over all spans.

    Raises:
        ValueError: if there is no window of one of these numbers.
    """
    order = index.argsort()
    ordered = index[order]
    found = []
    before = at = 0
    for chunk in spans:
        inside = _windows_in(chunk.length, rule)
        ends = inside.cumsum(0)
        total = int(inside.sum())
        stop = int(torch.searchsorted(ordered, before + total))
        found.append(_places(chunk, inside, ends, ordered[at:stop] - before, rule))
        before, at = before + total, stop
    if at < len(index):
        raise ValueError(f"there are {before} windows, so none is {int(ordered[at])}")
    start, pairs = torch.empty_like(index), torch.empty_like(index)
    start[order] = torch.cat([places.start for places in found])
    pairs[order] = torch.cat([places.pairs for places in found])
    return Places(start, pairs)


def draw(high: int, batch_size: int, batches: int, seed: int) -> Tensor:
    """Batches of torch.randint(0, high, (batch_size,)), one after the other from one generator.

    Returns int64 [batches * batch_size].
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, high, (batch_size,), generator=generator) for _ in range(batches)]
    return torch.cat(drawn)


def covered(starts: Tensor, length: int) -> int:
    """How many places the stretches [start, start + length) cover together."""
    ordered = starts.sort().values
    gaps = torch.diff(ordered).clamp(max=length)
    return int(gaps.sum()) + length


def _windows_in(lengths: Tensor, rule: WindowRule) -> Tensor:
    """How many windows spans of so many tokens hold, whatever the most is."""
    length, stride, pairs = rule.context_length, rule.stride, lengths - 1
    whole = (torch.div(pairs - length, stride, rounding_mode="floor") + 1).clamp(min=0)
    if not rule.pad:
        return whole
    # Neither these pairs nor what lies before the next place give another window.
    done = torch.where(whole > 0, (whole - 1) * stride + max(length, stride), 0)
    return whole + (pairs > done)


def _places(spans: Spans, inside: Tensor, ends: Tensor, index: Tensor, rule: WindowRule) -> Places:
    """The windows of some numbers, counted over these spans.

    Args:
        inside: how many windows each span holds.
        ends: their running sum.
    """
    span = torch.searchsorted(ends, index, right=True)
    at = (index - ends[span] + inside[span]) * rule.stride
    pairs = (spans.length[span] - 1 - at).clamp(max=rule.context_length)
    return Places(spans.start[span] + at, pairs)
