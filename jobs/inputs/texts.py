"""Documents that come one by one -> segments of whole documents."""

from dataclasses import dataclass, field

import numpy as np

from jobs.inputs.segments import BLOCK, BadRecord, Texts

REPLACEMENT = "\ufffd"
NOT_UTF8 = "is not UTF-8 (see --text-errors)"


@dataclass
class Packer:
    """Gathers documents until they make a segment."""

    block: int = BLOCK
    place: str = ""
    size: int = 0
    parts: list[bytes] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    replaced: int = 0

    def add(self, text: bytes, place: str) -> None:
        """A document, UTF-8."""
        self.place = self.place if self.parts else place
        self.parts.append(text)
        self.size += len(text)

    def full(self) -> bool:
        """Whether it is time to take what was gathered."""
        return self.size >= self.block or len(self.parts) + len(self.bad) >= self.block >> 6

    def take(self) -> Texts:
        """What was gathered; the next document begins anew."""
        ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        taken = Texts(b"".join(self.parts), ends, self.place, tuple(self.bad), self.replaced)
        self.parts, self.bad, self.size, self.replaced = [], [], 0, 0
        return taken


def utf8(raw: bytes, errors: str) -> tuple[bytes, int]:
    """Bytes as UTF-8, and how many stretches of them were not and are U+FFFD now.

    Raises:
        UnicodeDecodeError: if they are not and `errors` is "strict".
    """
    text = raw.decode("utf-8", errors)
    replaced = (
        text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode()) if errors != "strict" else 0
    )
    return (text.encode(), replaced) if replaced else (raw, 0)
