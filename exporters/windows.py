"""Token stream -> windows: stretches of it as inputs, targets and documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.files import local_copy
from exporters.safefile import open_tensors
from exporters.spans import Places, Spans, document_spans, whole_stream
from exporters.tokens import TokenStream

STARTS = "windows.safetensors"
"""window_start int64 [W] and, with padding, window_pairs int32 [W]: the real pairs of each window.

It is there where starts do not follow from a stride: in every export whose windows end with their
document, and in a compact one of random windows.
"""


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Where the windows of a stream begin; window i is row i of the export.

    Starts stand in memory (random_starts), in a file (listed), or are multiples of the stride.
    """

    root: Place  # of the export
    count: int
    context_length: int
    stride: int | None  # None where windows are drawn
    split: bool = False  # whether each window ends with its document
    padding: int | None = None  # the id in places beyond the real ones; None where there are none
    padded_windows: int = 0
    padded_places: int = 0
    tokens: int  # of the stream
    dropped_tokens: int  # tokens of the stream that no window holds, as input or as target
    short_documents: int = 0  # too short for a window; 0 where windows run over their ends
    random_starts: Tensor | None = None  # int64 [count]
    listed: Any = None  # windows.safetensors, open

    def places(self, first: int, stop: int) -> Places:
        """Where windows first to stop - 1 begin and the pairs that they hold.

        Raises:
            ExportError: if a window leaves the stream.
        """
        pairs = torch.full((stop - first,), self.context_length)
        if self.random_starts is not None:
            start = self.random_starts[first:stop]
        elif self.listed is not None:
            start = self.listed.get_slice("window_start")[first:stop]
            if self.padding is not None:
                pairs = self.listed.get_slice("window_pairs")[first:stop].long()
        else:
            start = torch.arange(first, stop, dtype=torch.int64) * (self.stride or 0)
            if self.padded_windows and stop == self.count:
                pairs[-1] -= self.padded_places
        within = (start >= 0) & (pairs >= 1) & (pairs <= self.context_length)
        if not bool((within & (start < self.tokens - pairs)).all()):
            raise ExportError(
                f"{self.root}: windows begin beyond its {self.tokens} tokens or end "
                f"there, some of {first} to {stop - 1}"
            )
        return Places(start, pairs)


@dataclass(frozen=True)
class Windows:
    """Some windows: inputs, targets (one token on) and the document of each input token."""

    window_start: Tensor  # int64 [W]
    input_ids: Tensor  # int32 [W, T]
    target_ids: Tensor  # int32 [W, T]
    document_ids: Tensor | None  # int32 [W, T]


def cut_windows(
    stream: TokenStream,
    starts: Tensor,
    context_length: int,
    *,
    documents: bool = True,
    pairs: Tensor | None = None,
    padding: int = 0,
) -> Windows:
    """Read the windows that begin at `starts` (int64 [W]), with their documents or without.

    Args:
        pairs: how many places of each window are real, int64 [W]; without, all. Where inputs and
            targets are not, they are `padding`; documents there are that of the last real input.
    """
    length = context_length + 1
    places = torch.arange(length).expand(len(starts), length)
    if pairs is not None:
        places = torch.minimum(places, pairs.unsqueeze(1))
    owners = places[:, :-1]
    if pairs is not None:
        owners = torch.minimum(owners, pairs.unsqueeze(1) - 1)
    found = None
    first, stop = int(starts.min()), int((starts + places[:, -1]).max()) + 1
    if stop - first <= 2 * length * len(starts):
        # Windows that lie close together are cut from one stretch.
        from_first = (starts - first).unsqueeze(1)
        ids = stream.read(first, stop)[from_first + places]
        if documents:
            found = stream.documents(first, stop)[from_first + owners]
    else:
        ends = zip(starts.tolist(), (starts + places[:, -1] + 1).tolist(), places, strict=True)
        ids = torch.stack([stream.read(at, end)[row] for at, end, row in ends])
        if documents:
            ends = zip(starts.tolist(), (starts + owners[:, -1] + 1).tolist(), owners, strict=True)
            found = torch.stack([stream.documents(at, end)[row] for at, end, row in ends])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    if pairs is not None:
        real = mask_of(pairs, context_length)
        inputs, targets = (torch.where(real, part, padding) for part in (inputs, targets))
    return Windows(
        window_start=starts.clone(),
        input_ids=inputs.contiguous(),
        target_ids=targets.contiguous(),
        document_ids=found,
    )


def mask_of(pairs: Tensor, context_length: int) -> Tensor:
    """Which places of windows hold a real input with a real target, bool [W, T].

    Attention with `is_causal` never looks from a real place at one that is not, for these come
    last; a loss takes the real places only: `loss[mask].mean()`. A DataLoader stacks masks as it
    stacks every other tensor of a window.
    """
    return torch.arange(context_length) < pairs.unsqueeze(1)


def spans_of(stream: TokenStream, *, split: bool) -> Iterator[Spans]:
    """The spans of a stream: its documents, or the one that it is."""
    if split:
        return document_spans(stream.document_start_parts(), stream.tokens)
    return whole_stream(stream.tokens)


def open_starts(path: Place) -> Any:
    """Open windows.safetensors, to be read by slices.

    Raises:
        ExportError: if it cannot be read.
    """
    try:
        with local_copy(path) as local:
            return open_tensors(local)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} could not be read: {error}") from error
