"""Token stream -> windows: stretches of it as inputs, targets and documents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.tokens import TokenStream

STARTS = "windows.safetensors"  # window_start int64 [W] of a compact export with random windows


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
    document_ids: Tensor | None  # int32 [W, T]


def cut_windows(
    stream: TokenStream, starts: Tensor, context_length: int, *, documents: bool = True
) -> Windows:
    """Read the windows that begin at `starts` (int64 [W]), with their documents or without."""
    length = context_length + 1
    found = None
    first, last = int(starts.min()), int(starts.max())
    if last + length - first <= 2 * length * len(starts):
        # Windows that lie close together are cut from one stretch.
        places = (starts - first).unsqueeze(1) + torch.arange(length)
        ids = stream.read(first, last + length)[places]
        if documents:
            found = stream.documents(first, last + length)[places[:, :-1]]
    else:
        ids = torch.stack([stream.read(at, at + length) for at in starts.tolist()])
        if documents:
            found = torch.stack(
                [stream.documents(at, at + context_length) for at in starts.tolist()]
            )
    return Windows(
        window_start=starts.clone(),
        input_ids=ids[:, :-1].contiguous(),
        target_ids=ids[:, 1:].contiguous(),
        document_ids=found,
    )
