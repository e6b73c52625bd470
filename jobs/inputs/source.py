"""The bytes of a compressed file, taken in pieces of the size that is wanted."""

from collections.abc import Iterator

from jobs.errors import CorpusError


class Source:
    """Blocks of bytes as one run; `place` counts the bytes that were taken.

    Args:
        where: what messages call the file.
    """

    def __init__(self, where: str, blocks: Iterator[bytes]) -> None:
        self.where = where
        self.place = 0
        self._blocks = blocks
        self._held = b""
        self._at = 0  # where the bytes of `_held` that are left begin

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer where the file ends."""
        taken = self.peek(size)
        self._at += len(taken)
        self.place += len(taken)
        return taken

    def peek(self, size: int) -> bytes:
        """What take would give, not taken."""
        while len(self._held) - self._at < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._held = self._held[self._at :] + block
            self._at = 0
        return self._held[self._at : self._at + size]

    def give_back(self, data: bytes) -> None:
        """Take bytes, which were the last that were taken, for not taken."""
        self._at -= len(data)
        self.place -= len(data)

    def rest(self) -> Iterator[bytes]:
        """All that is left, as it comes."""
        yield self.take(len(self._held) - self._at)
        for block in self._blocks:
            self.place += len(block)
            yield block


def cut_off(source: Source, name: str) -> CorpusError:
    """The error of a file that ends before its compressed data does."""
    return CorpusError(
        f"{source.where} is cut off: it ends after byte {source.place}, in the middle of its "
        f"{name} data; fetch it again"
    )


def damaged(source: Source, after: int, reason: str) -> CorpusError:
    """The error of compressed data that make no sense somewhere after a byte."""
    return CorpusError(f"{source.where} is damaged after byte {after}: {reason}; fetch it again")


def something_else(source: Source, name: str) -> CorpusError:
    """The error of a file in which other data follow the compressed ones."""
    return CorpusError(
        f"{source.where} holds something that is not {name} after byte {source.place}; cut it off, "
        "or fetch the file again"
    )
