"""How far a stage is: what is done of how much, how fast, and how long it still takes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from exporters.space import readable
from jobs.units import brief, duration

RECENT_SECONDS = 60.0  # that a rate is of: longer than a shard takes as a rule
SAMPLE_SECONDS = 1.0
BASIS_SECONDS = 3.0  # below which no rate is told


@dataclass(frozen=True)
class Sample:
    """What a stage had done at a time, without what was kept."""

    seconds: float  # by time.monotonic
    amount: int
    tokens: int
    bytes: int


class Stage:
    """A stage that goes on: called with an amount it advances by it. Any thread may call.

    Args:
        total: the whole amount, or None where it is not known.
        unit: of the amount, in the plural; "bytes" are those that are read.
        check: called before each advance; raises where the job is to stop.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self.name, self.total, self.unit, self.check = name, total, unit, check
        self.kept = self.amount = self.tokens = self._bytes = 0
        self._extra = ""
        self._changing = threading.Lock()
        self.began = time.monotonic()
        self._samples = deque([Sample(self.began, 0, 0, 0)])

    def __call__(self, amount: int) -> None:
        """Advance by what has been done."""
        self.check()
        with self._changing:
            self.amount += amount
            self._sample()

    def skip(self, amount: int) -> None:
        """Advance by what an earlier run has done, which says nothing of how fast this one is."""
        self.check()
        with self._changing:
            self.kept += amount

    def add(self, *, tokens: int = 0, bytes: int = 0) -> None:  # noqa: A002
        """Count what was done beside the amount: tokens, and bytes where they are not its unit."""
        with self._changing:
            self.tokens += tokens
            self._bytes += bytes

    def extra(self, text: str) -> None:
        """Say something else of how far it is, such as "2 of 18 shards"."""
        self._extra = text

    @property
    def bytes(self) -> int:
        """The bytes that were counted, or advanced by where they are the unit."""
        return self.amount if self.unit == "bytes" else self._bytes

    @property
    def reached(self) -> int:
        """What is done of the total, with what was kept."""
        return self.kept + self.amount

    def text(self) -> str:
        """How far it is, how fast, and how long it still takes."""
        with self._changing:
            since, now = self._samples[0], self._now()
            seconds = now.seconds - since.seconds
            parts = [self._of_total(), *self._counts()]
            if seconds >= BASIS_SECONDS:
                done = now.amount - since.amount
                tokens, size = now.tokens - since.tokens, now.bytes - since.bytes
                parts += self._rates(seconds, done, tokens, size)
                if done and self.total is not None and self.reached < self.total:
                    left = seconds * (self.total - self.reached) / done
                    parts.append(f"{duration(max(1.0, left))} left")
        return ", ".join(parts)

    def last_text(self) -> str:
        """What it came to, and how fast on the whole."""
        with self._changing:
            seconds = time.monotonic() - self.began
            kept = f" ({self._quantity(self.kept)} kept)" if self.kept else ""
            done = f"{self._named(self._quantity(self.amount))} in {duration(seconds, 1)}{kept}"
            rates = self._rates(seconds, 0, self.tokens, self.bytes) if seconds > 0 else []
            return ", ".join([done, *self._counts(), *rates])

    def _now(self) -> Sample:
        return Sample(time.monotonic(), self.amount, self.tokens, self.bytes)

    def _sample(self) -> None:
        """Note what is done; the first of the samples is what rates are counted from."""
        now = self._now()
        if now.seconds - self._samples[-1].seconds < SAMPLE_SECONDS:
            return
        self._samples.append(now)
        # Where advances are rare, the one before the last is looked back to, however long ago.
        while now.seconds - self._samples[1].seconds >= RECENT_SECONDS:
            self._samples.popleft()

    def _of_total(self) -> str:
        done = self._quantity(self.reached)
        if self.total is None:
            return self._named(done)
        share = f" ({min(100, 100 * self.reached // self.total)}%)" if self.total else ""
        return self._named(f"{done} of {self._quantity(self.total)}") + share

    def _quantity(self, amount: int) -> str:
        return readable(amount) if self.unit == "bytes" else f"{amount:,}"

    def _named(self, quantity: str) -> str:
        return f"{quantity} read" if self.unit == "bytes" else f"{quantity} {self.unit}"

    def _counts(self) -> list[str]:
        tokens = self.tokens if self.unit == "bytes" else 0
        return [*([f"{brief(tokens)} tokens"] if tokens else []), *filter(None, [self._extra])]

    def _rates(self, seconds: float, amount: int, tokens: int, size: int) -> list[str]:
        """Tokens and bytes a second, those of its unit first; of other units where none is told."""
        counted = [f"{brief(tokens / seconds)} tokens/s"] if tokens else []
        moved = [f"{readable(round(size / seconds))}/s"] if size else []
        rates = moved + counted if self.unit == "bytes" else counted + moved
        if amount and not rates:
            return [f"{brief(amount / seconds)} {self.unit}/s"]
        return rates
