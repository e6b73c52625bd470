"""The token stream on disk: tokens/tokens-NNNNN.safetensors, each a part of one long stream.

input_ids        int32 [n]    the part's tokens, separators among them
document_starts  int64 [m]    where the documents that begin in this part begin, counted from
                              the start of the whole stream
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.bucket import Bucket, Place
from exporters.errors import DamageError, ExportError, OtherTokensError
from exporters.files import FileRecord
from exporters.safefile import TensorEntry, read_header
from exporters.shards import write_tensors

PART_TOKENS = 1 << 24  # 64 MiB of ids, the most that the writer holds
DTYPES: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int32),
    "document_starts": np.dtype(np.int64),
}
NO_STARTS: NDArray[np.int64] = np.empty(0, np.int64)


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

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number <= self.largest and bool(self._flags[number])

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
        # A part that holds fewer was the last.
        self._ended = bool(kept) and kept[-1].tokens < part_tokens
        self._ids: NDArray[np.int32] = np.empty(part_tokens, np.int32)
        self._filled = 0
        self._starts = array("q")  # of documents, from the first unwritten id on
        self._waiting = 0  # documents that begin where the stream ends so far
        for part in kept:
            stop = part.first_token + part.tokens
            self.seen.add(self._kept.read(part.first_token, stop).numpy())

    def append(self, ids: NDArray[Any], starts: NDArray[np.int64] = NO_STARTS) -> None:
        """Add ids [n], any integer type, to the stream; documents begin before ids[starts].

        A start may be n: that of a document without ids, or whose ids come next.
        """
        self.documents += len(starts)
        if len(ids) == 0:
            self._waiting += len(starts)
            return
        within = starts[starts < len(ids)]
        places = self.tokens + np.concatenate([np.zeros(self._waiting, np.int64), within])
        self._waiting = len(starts) - len(within)
        skipped = min(len(ids), max(0, self._kept.tokens - self.tokens))
        if skipped:
            stop = self.tokens + skipped
            if not np.array_equal(self._kept.read(self.tokens, stop).numpy(), ids[:skipped]):
                raise OtherTokensError(f"the ids from token {self.tokens} on are others")
            if not np.array_equal(self._kept.starts(self.tokens, stop), places[places < stop]):
                raise OtherTokensError(f"documents begin elsewhere from token {self.tokens} on")
            places = places[places >= stop]
        self.tokens += skipped
        ids = ids[skipped:]
        if self._ended and len(ids):
            raise OtherTokensError(f"the stream goes on at token {self.tokens}, where it ended")
        self.seen.add(ids)
        self._starts.frombytes(places.tobytes())
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
        last = np.full(self._waiting, self.tokens, np.int64)
        if self._ended:
            if len(self._kept.starts(self.tokens, self.tokens + 1)) != self._waiting:
                raise OtherTokensError(f"documents begin elsewhere at token {self.tokens}")
        elif self._filled or len(last):
            self._starts.frombytes(last.tobytes())
            self._write_part(last=True)
        return tuple(self.parts)

    def _write_part(self, *, last: bool = False) -> None:
        # A document may start where this part ends: its tokens, and so its start, are the next's.
        starts = np.array(self._starts, np.int64)
        count = len(starts) if last else int(np.searchsorted(starts, self.tokens))
        own, self._starts = starts[:count], self._starts[count:]
        name = f"tokens/tokens-{len(self.parts) + 1:05d}.safetensors"
        tensors = {
            "input_ids": torch.from_numpy(self._ids[: self._filled]),
            "document_starts": torch.from_numpy(own),
        }
        part = TokenPart(
            file=write_tensors(self.root, name, tensors, ("format", "pt")),
            first_token=self.tokens - self._filled,
            tokens=self._filled,
            first_document=sum(part.documents for part in self.parts),
            documents=len(own),
        )
        self.parts.append(part)
        self._filled = 0
        self._on_part(part)


class TokenStream:
    """Reads stretches of a stream that TokenWriter wrote, in plain reads: nothing is mapped.

    Every method raises ExportError where a file cannot be read.
    """

    def __init__(self, root: Place, parts: Sequence[TokenPart]) -> None:
        self.tokens = sum(part.tokens for part in parts)
        self._root = root
        self._parts = parts
        self._ends = np.array([part.first_token + part.tokens for part in parts])
        self._places = [self._header(part) for part in parts]
        self._starts: tuple[int, NDArray[np.int64]] = (-1, NO_STARTS)

    def read(self, start: int, stop: int) -> Tensor:
        """The ids of the stretch [start, stop), int32."""
        pieces = [
            torch.from_numpy(self._read(index, "input_ids", low, high))
            for index, low, high in self._overlaps(start, stop)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where the documents that begin in [start, stop) of the stream do, int64."""
        found = [NO_STARTS]
        for index, part in enumerate(self._parts):
            # A document without tokens may begin where the last part ends.
            if part.first_token < stop and start <= part.first_token + part.tokens:
                places = self._read(index, "document_starts", 0, part.documents)
                low, high = np.searchsorted(places, [start, stop])
                found.append(places[low:high])
        return np.concatenate(found)

    def document_start_parts(self) -> Iterator[Tensor]:
        """Where documents begin, int64, part by part."""
        for index, part in enumerate(self._parts):
            yield torch.from_numpy(self._read(index, "document_starts", 0, part.documents))

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
                starts = self._read(index, "document_starts", 0, part.documents)
                self._starts = (index, starts)
            places = np.arange(part.first_token + low, part.first_token + high)
            before = np.searchsorted(starts, places, side="right")
            owners = (before + (part.first_document - 1)).astype(np.int32)
            pieces.append(torch.from_numpy(owners))
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

    def _header(self, part: TokenPart) -> dict[str, int]:
        """Where the tensors of a part begin in its file, by name."""
        path = self._root / part.file.name
        try:
            tensors = read_header(path).tensors
            for name, count in (("input_ids", part.tokens), ("document_starts", part.documents)):
                if tensors[name] != TensorEntry(DTYPES[name].name, (count,)):
                    raise ExportError(f"{path}: {name} is not as the manifest says")
            return {name: tensors[name].first_byte for name in DTYPES}
        except KeyError as error:
            raise ExportError(f"{path} has no tensor {error}") from error
        except OSError as error:
            raise DamageError(f"{path} could not be read: {error.strerror}") from error

    def _read(self, index: int, name: str, low: int, high: int) -> NDArray[Any]:
        """The values [low, high) of a tensor of a part."""
        path = self._root / self._parts[index].file.name
        dtype = DTYPES[name]
        place = self._places[index][name] + low * dtype.itemsize
        if isinstance(path, Bucket):
            data = path.read(place, place + (high - low) * dtype.itemsize)
            return np.frombuffer(bytearray(data), dtype)
        try:
            values: NDArray[Any] = np.fromfile(path, dtype, high - low, offset=place)
        except OSError as error:
            raise DamageError(f"{path} could not be read: {error.strerror}") from error
        if len(values) != high - low:
            raise DamageError(f"{path} is cut short")
        return values
