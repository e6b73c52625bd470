"""Which stretches of a token stream become windows."""

import torch
from torch import Tensor

from exporters.windows import WindowPlan
from jobs.errors import CorpusError


def check_length(tokens: int, context_length: int) -> None:
    """Raise CorpusError if a stream is shorter than one window and its last target."""
    if tokens < context_length + 1:
        raise CorpusError(
            f"the corpus has {tokens} tokens, but a window of --context-length {context_length} "
            f"and its last target need {context_length + 1}; give more text or a shorter context"
        )


def plan_sequential(
    tokens: int, context_length: int, stride: int, most: int | None = None
) -> WindowPlan:
    """Windows at 0, stride, 2*stride ... while input and target fit; at most `most` of them.

    Raises:
        CorpusError: if the stream is shorter than one window and its last target.
    """
    check_length(tokens, context_length)
    count = (tokens - context_length - 1) // stride + 1
    if most is not None:
        count = min(count, most)
    held = min(stride, context_length + 1) * (count - 1) + context_length + 1
    return WindowPlan(
        count=count,
        context_length=context_length,
        stride=stride,
        random_starts=None,
        dropped_tokens=tokens - held,
    )


def plan_random(
    tokens: int, context_length: int, batch_size: int, batches: int, seed: int
) -> WindowPlan:
    """Batches of windows drawn as the notebook draws them, batch after batch from one generator.

    Each batch is torch.randint(0, tokens - context_length, (batch_size,)).

    Raises:
        CorpusError: if the stream is shorter than one window and its last target.
    """
    check_length(tokens, context_length)
    generator = torch.Generator().manual_seed(seed)
    high = tokens - context_length
    drawn = [torch.randint(0, high, (batch_size,), generator=generator) for _ in range(batches)]
    starts = torch.cat(drawn)
    return WindowPlan(
        count=len(starts),
        context_length=context_length,
        stride=0,
        random_starts=starts,
        dropped_tokens=tokens - _covered(starts, context_length + 1),
    )


def _covered(starts: Tensor, length: int) -> int:
    """How many places the stretches [start, start + length) cover together."""
    ordered = starts.sort().values
    gaps = torch.diff(ordered).clamp(max=length)
    return int(gaps.sum()) + length
