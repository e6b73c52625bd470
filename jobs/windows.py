"""Which stretches of a token stream become windows."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.spans import (
    WindowCounts,
    WindowRule,
    count_more,
    count_windows,
    covered,
    draw,
    find_windows,
)
from exporters.tokens import IdSet, TokenStream
from exporters.windows import WindowPlan, spans_of
from jobs.config import JobConfig
from jobs.errors import CorpusError
from jobs.tokenise import TokenCounter
from jobs.tokenizer import Tokenizer


class WindowCounter(TokenCounter):
    """A sink that counts tokens and what windows they give, without a stream on disk."""

    def __init__(self, rule: WindowRule) -> None:
        super().__init__()
        self._rule = rule
        self._counts = WindowCounts()
        self._begun = 0  # where the span that goes on does

    def append(self, ids: NDArray[Any], starts: NDArray[np.int64]) -> None:
        if self._rule.split and len(starts):
            # The first document of all begins where its span does.
            ends = (self.tokens + starts)[0 if self.documents else 1 :]
            if len(ends):
                lengths = np.diff(ends, prepend=self._begun)
                self._counts = count_more(self._counts, torch.from_numpy(lengths), self._rule)
                self._begun = int(ends[-1])
        super().append(ids, starts)

    def close(self) -> WindowCounts:
        """What the windows come to, once all documents are there."""
        last = torch.tensor([self.tokens - self._begun])
        return count_more(self._counts, last, self._rule)


def rule_of(config: JobConfig) -> WindowRule:
    """How a job cuts its stream into windows."""
    drawn = config.sampling == "random"
    return WindowRule(
        context_length=config.context_length,
        stride=1 if drawn else config.window_stride,
        split=config.boundaries == "split",
        pad=config.tail == "pad",
        most=None if drawn or config.batches is None else config.batches * config.batch_size,
    )


def padding_of(config: JobConfig, tokenizer: Tokenizer) -> int | None:
    """The id in places of windows that are not real; None where there are none."""
    return (tokenizer.end_of_text or 0) if config.tail == "pad" else None


def plan_windows(
    config: JobConfig, stream: TokenStream, documents: int, padding: int | None
) -> WindowPlan:
    """The windows of a stream of so many documents.

    Sequential ones follow from its documents; random ones are drawn as the notebook draws them:
    torch.randint(0, places where a window may begin, (batch_size,)), batch after batch.

    Raises:
        CorpusError: if there is none.
    """
    rule = rule_of(config)
    counts = count_windows(spans_of(stream, split=rule.split), rule)
    check_counts(config, counts)
    short = documents - counts.fruitful_spans if rule.split else 0
    if config.sampling == "random":
        drawn = draw(counts.windows, config.batch_size, config.random_batches, config.seed)
        starts = find_windows(spans_of(stream, split=rule.split), rule, drawn).start
        return WindowPlan(
            root=config.out,
            count=len(starts),
            context_length=rule.context_length,
            stride=None,
            split=rule.split,
            tokens=stream.tokens,
            dropped_tokens=stream.tokens - covered(starts, rule.context_length + 1),
            short_documents=short,
            random_starts=starts,
        )
    return WindowPlan(
        root=config.out,
        count=counts.windows,
        context_length=rule.context_length,
        stride=rule.stride,
        split=rule.split,
        padding=padding,
        padded_windows=counts.padded_windows,
        padded_places=counts.padded_places,
        tokens=stream.tokens,
        dropped_tokens=stream.tokens - counts.held_tokens,
        short_documents=short,
    )


def check_counts(config: JobConfig, counts: WindowCounts) -> None:
    """Raise CorpusError if a corpus gives no window."""
    if counts.windows:
        return
    longest, length = counts.longest_span, config.context_length
    if config.tail == "pad":
        what = "longest document" if config.boundaries == "split" else "corpus"
        raise CorpusError(
            f"the {what} has {longest} tokens, but a window holds one and its target at least; "
            "give more text"
        )
    if config.boundaries == "ignore":
        raise CorpusError(
            f"the corpus has {longest} tokens, but a window of --context-length {length} "
            f"and its last target need {length + 1}; give more text or a shorter context"
        )
    ways = "longer documents, a shorter context or --boundaries ignore"
    if config.sampling == "sequential":
        ways = "longer documents, a shorter context, --tail pad or --boundaries ignore"
    raise CorpusError(
        f"the longest document has {longest} tokens, but a window of --context-length {length} "
        f"and its last target need {length + 1}; give {ways}"
    )


def ids_to_compute(seen: IdSet, padded_windows: int, padding: int | None) -> Tensor:
    """The ids in windows, int32 ascending: those of the stream and, where windows have it, padding.

    There is one at least, for a corpus without tokens gives no windows.
    """
    ids = seen.ids()
    if not padded_windows or padding is None or bool((ids == padding).any()):
        return ids
    return torch.cat([ids, torch.tensor([padding], dtype=torch.int32)]).sort().values
