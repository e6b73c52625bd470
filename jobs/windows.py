"""Token stream -> windows: which stretches of it are inputs, and their tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.tokens import TokenStream
from jobs.errors import CorpusError


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Where the windows of a stream begin; window i is row i of the export."""

    count: int
    context_length: int
    stride: int
    random_starts: Tensor | None  # int64 [count], or None where starts are multiples of stride
    dropped_tokens: int  # tokens of the stream that no window holds, as input or as target

    def starts(self, first: int, stop: int) -> Tensor:
        """Places in the token stream where windows first to stop - 1 begin, int64."""
        if self.random_starts is not None:
            return self.random_starts[first:stop]
        return torch.arange(first, stop, dtype=torch.int64) * self.stride


@dataclass(frozen=True)
class Windows:
    """Some windows: inputs, targets (one token on) and the document of each input token."""

    window_start: Tensor  # int64 [W]
    input_ids: Tensor  # int32 [W, T]
    target_ids: Tensor  # int32 [W, T]
    document_ids: Tensor  # int32 [W, T]


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


def cut_windows(stream: TokenStream, starts: Tensor, context_length: int) -> Windows:
    """Read the windows that begin at `starts` (int64 [W])."""
    length = context_length + 1
    first, last = int(starts.min()), int(starts.max())
    if last + length - first <= 2 * length * len(starts):
        # Windows that lie close together are cut from one stretch.
        places = (starts - first).unsqueeze(1) + torch.arange(length)
        ids = stream.read(first, last + length)[places]
        documents = stream.documents(first, last + length)[places[:, :-1]]
    else:
        ids = torch.stack([stream.read(at, at + length) for at in starts.tolist()])
        documents = torch.stack([stream.documents(at, at + length - 1) for at in starts.tolist()])
    return Windows(
        window_start=starts.clone(),
        input_ids=ids[:, :-1].contiguous(),
        target_ids=ids[:, 1:].contiguous(),
        document_ids=documents,
    )


def _covered(starts: Tensor, length: int) -> int:
    """How many places the stretches [start, start + length) cover together."""
    ordered = starts.sort().values
    gaps = torch.diff(ordered).clamp(max=length)
    return int(gaps.sum()) + length
