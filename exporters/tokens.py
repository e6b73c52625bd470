"""The token stream on disk: tokens/tokens-NNNNN.safetensors, each a part of one long stream.

input_ids        int32 [n]    the part's tokens, separators among them
document_starts  int64 [m]    where the documents that begin in this part begin, counted from
                              the start of the whole stream
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from exporters.errors import ExportError, OtherTokensError
from exporters.files import FileRecord
from exporters.safefile import open_tensors
from exporters.shards import write_tensors

PART_TOKENS = 1 << 24  # 64 MiB of ids, the most that the writer holds


@dataclass(frozen=True, kw_only=True)
class TokenPart:
    """One file of the stream and the stretch of it that it holds."""

    file: FileRecord
    first_token: int
    tokens: int
    first_document: int
    documents: int


class IdSet:
    """Which ids occur: a flag for each, so memory hangs on the vocabulary and not on the corpus."""

    def __init__(self) -> None:
        self.largest = -1
        self._flags: NDArray[np.bool_] = np.zeros(1 << 18, np.bool_)

    def add(self, ids: NDArray[Any]) -> None:
        """Note ids [n], any integer type, none negative."""
        if len(ids) == 0:
            return
        self.largest = max(self.largest, int(ids.max()))
        if self.largest >= len(self._flags):
            self._flags = np.pad(self._flags, (0, self.largest + 1 - len(self._flags)))
        self._flags[ids] = True

    def __len__(self) -> int:
        return int(np.count_nonzero(self._flags))

    def ids(self) -> Tensor:
        """The ids that occur, int32, ascending."""
        return torch.from_numpy(np.flatnonzero(self._flags).astype(np.int32))


class TokenWriter:
    """Takes documents' ids in order and writes the stream in parts, holding one part at most.

    Args:
        on_part: told of each part once it is written.
        kept: the first parts, which are written already.
        start: the place in the stream of the next id that `append` will be given; what stands in
            the kept parts is compared and not written again.
        documents: how many documents begin before `start`.

    Every method raises OtherTokensError where ids or documents are not those of the kept parts, and
    ExportError where a part cannot be read or written.
    """

    def __init__(
        self,
        root: Path,
        part_tokens: int = PART_TOKENS,
        *,
        on_part: Callable[[TokenPart], None] = lambda _: None,
        kept: Sequence[TokenPart] = (),
        start: int = 0,
        documents: int = 0,
    ) -> None:
        self.root = root
        self.parts: list[TokenPart] = list(kept)
        self.tokens = start
        self.documents = documents
        self.seen = IdSet()
        self._on_part = on_part
        self._kept = TokenStream(root, kept)
        self._kept_documents = sum(part.documents for part in kept)
        # A part that holds fewer was the last.
        self._ended = bool(kept) and kept[-1].tokens < part_tokens
        self._ids: NDArray[np.int32] = np.empty(part_tokens, np.int32)
        self._filled = 0
        self._starts: list[int] = []
        for part in kept:
            stop = part.first_token + part.tokens
            self.seen.add(self._kept.read(part.first_token, stop).numpy())

    def start_document(self) -> None:
        """The next ids begin a document."""
        if self.tokens >= self._kept.tokens:
            self._starts.append(self.tokens)
        elif self.documents == self._kept_documents:
            raise OtherTokensError(f"a document begins at token {self.tokens} where none did")
        self.documents += 1

    def append(self, ids: NDArray[Any]) -> None:
        """Add ids [n], any integer type, to the stream."""
        skipped = min(len(ids), max(0, self._kept.tokens - self.tokens))
        if skipped:
            kept = self._kept.read(self.tokens, self.tokens + skipped)
            if not np.array_equal(kept.numpy(), ids[:skipped]):
                raise OtherTokensError(f"the ids from token {self.tokens} on are others")
        self.tokens += skipped
        ids = ids[skipped:]
        if self._ended and len(ids):
            raise OtherTokensError(f"the stream goes on at token {self.tokens}, where it ended")
        self.seen.add(ids)
        while len(ids):
            taken = ids[: len(self._ids) - self._filled]
            self._ids[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self.tokens += len(taken)
            ids = ids[len(taken) :]
            if self._filled == len(self._ids):
                self._write_part()

    def close(self) -> tuple[TokenPart, ...]:
        """Write what is left and return the parts."""
        if self.tokens < self._kept.tokens:
            raise OtherTokensError(f"the stream ends at token {self.tokens}, before it did")
        if self._filled or self._starts:
            self._write_part()
        return tuple(self.parts)

    def _write_part(self) -> None:
        first = self.tokens - self._filled
        # A document may start where this part ends: its tokens, and so its start, are the next's.
        own = [start for start in self._starts if start < self.tokens]
        later = self._starts[len(own) :]
        name = f"tokens/tokens-{len(self.parts) + 1:05d}.safetensors"
        tensors = {
            "input_ids": torch.from_numpy(self._ids[: self._filled]),
            "document_starts": torch.tensor(own, dtype=torch.int64),
        }
        part = TokenPart(
            file=write_tensors(self.root, name, tensors, ("format", "pt")),
            first_token=first,
            tokens=self._filled,
            first_document=self.documents - len(self._starts),
            documents=len(own),
        )
        self.parts.append(part)
        self._starts = later
        self._filled = 0
        self._on_part(part)


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn what the library raises for a file that it cannot read into an ExportError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ExportError(f"the tokens of {root} could not be read: {error}") from error


class TokenStream:
    """Reads stretches of a stream that TokenWriter wrote; its files stay open.

    Every method raises ExportError where a file cannot be read.
    """

    def __init__(self, root: Path, parts: Sequence[TokenPart]) -> None:
        self.tokens = sum(part.tokens for part in parts)
        self._root = root
        self._parts = parts
        self._ends = np.array([part.first_token + part.tokens for part in parts])
        with _readable(root):
            self._files: list[Any] = [open_tensors(root / part.file.name) for part in parts]
        self._starts = (-1, torch.empty(0, dtype=torch.int64))

    def read(self, start: int, stop: int) -> Tensor:
        """The ids of the stretch [start, stop), int32."""
        pieces = []
        with _readable(self._root):
            for index, low, high in self._overlaps(start, stop):
                pieces.append(self._files[index].get_slice("input_ids")[low:high])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def document_starts(self) -> list[int]:
        """Where documents begin, in all parts."""
        with _readable(self._root):
            return [
                place
                for file in self._files
                for place in file.get_tensor("document_starts").tolist()
            ]

    def document_start_parts(self) -> Iterator[Tensor]:
        """Where documents begin, int64, part by part."""
        with _readable(self._root):
            for file in self._files:
                yield file.get_tensor("document_starts")

    def documents(self, start: int, stop: int) -> Tensor:
        """The document of each token of [start, stop), int32, counted from 0.

        The separator after a document belongs to that document.
        """
        pieces = []
        for index, low, high in self._overlaps(start, stop):
            part = self._parts[index]
            # The last part's starts are kept; threads may replace each other's, but use their own.
            kept, starts = self._starts
            if kept != index:
                with _readable(self._root):
                    starts = self._files[index].get_tensor("document_starts")
                self._starts = (index, starts)
            places = torch.arange(part.first_token + low, part.first_token + high)
            before = torch.searchsorted(starts, places, right=True)
            pieces.append((before + (part.first_document - 1)).to(torch.int32))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _overlaps(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The parts that [start, stop) touches, each with the stretch inside it."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        overlaps = []
        for index in range(first, len(self._parts)):
            part = self._parts[index]
            if part.first_token >= stop:
                break
            low, high = max(start - part.first_token, 0), min(stop - part.first_token, part.tokens)
            overlaps.append((index, low, high))
        return overlaps
