"""What a person sees while a job works: bars on a terminal, plain lines elsewhere, on stderr."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jobs.printable import printable

LINE_SECONDS = 30.0

Advance = Callable[[int], None]


class Reporter:
    """Says what happens, and keeps how long each stage took.

    Args:
        quiet: say nothing.
        check: called often, from any thread; raises where the job is to stop.
    """

    def __init__(self, *, quiet: bool = False, check: Callable[[], None] = lambda: None) -> None:
        self.quiet = quiet
        self.check = check
        self._advancing = threading.Lock()
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """One line that matters: a choice and its reason, something skipped or counted."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Time a stage and show how far it is; yields the function that advances it."""
        self.check()
        began = time.monotonic()
        shown = self._bar if self.console.is_terminal and not self.quiet else self._lines
        with shown(name, total, unit) as show:

            def advance(amount: int) -> None:
                self.check()
                with self._advancing:
                    show(amount)

            yield advance
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count time to a stage, or to a part of one that overlaps with others."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def _bar(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total)
            yield lambda amount: progress.advance(task, amount)

    @contextmanager
    def _lines(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        began = said = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, said
            done += amount
            now = time.monotonic()
            if now - said >= LINE_SECONDS:
                said = now
                self.note(f"{name}: {done:,} of {total:,} {unit} after {now - began:.0f} s")

        yield advance
        self.note(f"{name}: {done:,} {unit} in {time.monotonic() - began:.1f} s")
