"""What a person sees while a job works: bars on a terminal, plain lines elsewhere, on stderr."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jobs.pace import Stage
from jobs.printable import printable
from jobs.timings import Spent, Timing, timings

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0
FRAME_SECONDS = 0.25
BAR_WIDTH = 20


class Reporter:
    """Says what happens, and keeps how long each stage took.

    Args:
        quiet: say nothing.
        check: called often, from any thread; raises where the job is to stop.
        began: when the job did, by time.monotonic; None for now.
        logs: whether notes are lines of the log, which the command shows.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        check: Callable[[], None] = lambda: None,
        began: float | None = None,
        logs: bool = False,
    ) -> None:
        self.quiet = quiet
        self.check = check
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.notes: list[str] = []
        self._logs = logs
        self._began = time.monotonic() if began is None else began
        self._first: float | None = None  # when the first stage began
        self._spent: dict[str, Spent] = {}  # in the order in which stages began
        self._now: Spent | None = None  # of the stage that goes on

    def note(self, text: str) -> None:
        """One line that matters: a choice and its reason, something skipped or counted."""
        self.notes.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        if self._logs:
            log.info("%s", text)
        else:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def note_or_stop(self, text: str) -> None:
        """Say, but keep no note of, what goes on for long, such as new attempts; checks first."""
        self.check()
        self._say(text)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Stage]:
        """Time a stage and show how far it is; yields what advances it and counts.

        One stage follows another; what is added within one is a part of it.
        """
        self.check()
        stage = Stage(name, total, unit, self.check)
        if self._first is None:
            self._first = stage.began
        self._now = spent = self._spent.setdefault(name, Spent())
        log.info("%s begins", name)
        try:
            with self._shown(stage):
                yield stage
        finally:
            self._now = None
            spent.seconds += time.monotonic() - stage.began
            log.info("%s ended after %.2f s", name, time.monotonic() - stage.began)
            spent.tokens += stage.tokens
            spent.bytes += stage.bytes

    def add(self, name: str, seconds: float) -> None:
        """Count time to a part of the stage that goes on."""
        if self._now is None:
            raise ValueError(f"{name} is a part of no stage")
        self._now.parts[name] = self._now.parts.get(name, 0.0) + seconds

    def on_node(self, node: str, tokens: int) -> None:
        """Count tokens of the stage that goes on to a node of a cluster."""
        if self._now is None:
            raise ValueError(f"{node} works on no stage")
        self._now.nodes[node] = self._now.nodes.get(node, 0) + tokens

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage and of each part."""
        parts = {name: took for spent in self._spent.values() for name, took in spent.parts.items()}
        return {name: spent.seconds for name, spent in self._spent.items()} | parts

    def timings(self) -> tuple[Timing, ...]:
        """Where the time went until now."""
        now = time.monotonic()
        first = now if self._first is None else self._first
        return timings(self._spent, first - self._began, now - self._began)

    @contextmanager
    def _shown(self, stage: Stage) -> Iterator[None]:
        """Show a stage until it ends, and then what it came to."""
        if self.quiet:
            yield
            return
        if self.console.is_terminal:
            with self._bar(stage):
                yield
        else:
            with _every(LINE_SECONDS, lambda: self._say(f"{stage.name}: {stage.text()}")):
                yield
        self._say(f"{stage.name}: {stage.last_text()}")

    @contextmanager
    def _bar(self, stage: Stage) -> Iterator[None]:
        """A bar that goes when the stage ends."""
        spinner = Spinner("dots")

        def frame() -> Table:
            row = Table.grid(padding=(0, 1), expand=True)
            for width in (1, len(stage.name), BAR_WIDTH):
                row.add_column(width=width)
            row.add_column(ratio=1)
            bar = ProgressBar(stage.total, stage.reached, BAR_WIDTH, pulse=stage.total is None)
            row.add_row(spinner, Text(stage.name), bar, Text(stage.text()))
            return row

        with (
            Live(
                get_renderable=frame, console=self.console, auto_refresh=False, transient=True
            ) as live,
            _every(FRAME_SECONDS, live.refresh),
        ):
            yield


@contextmanager
def _every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Act again and again in a thread of its own, until the block ends."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(seconds):
            with suppress(Exception):  # what cannot be shown stops no job
                act()

    thread = threading.Thread(target=go_on, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
