"""--verbose: what is done, and why, as lines with times on stderr.

Modules log by `logging.getLogger(__name__)`, at INFO, what helps somebody who looks for the reason
of something; other libraries are left as they are.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from jobs.errors import ConfigError
from jobs.printable import printable
from jobs.progress import Reporter

PACKAGES = ("jobs", "exporters", "kernels")
FORMAT = "%(asctime)s %(name)s: %(message)s"


class _Lines(logging.Handler):
    """Prints each record as a line of a console, above the progress that it shows."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = printable(self.format(record)).replace("\n", "\\n")
            self.console.print(line, markup=False, soft_wrap=True)
        except Exception:  # what cannot be shown stops no job
            self.handleError(record)


@contextmanager
def reporting(
    *,
    quiet: bool,
    as_json: bool,
    verbose: bool,
    check: Callable[[], None] = lambda: None,
    began: float | None = None,
) -> Iterator[Reporter]:
    """The reporter of a command, and, where it is verbose, the log beside its progress.

    With --json there is no progress, but the log is there if it is asked for.

    Raises:
        ConfigError: if it is to be quiet and verbose.
    """
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude each other; leave one out")
    reporter = Reporter(quiet=quiet or as_json, check=check, began=began, logs=verbose)
    if not verbose:
        yield reporter
        return
    console = Console(stderr=True, highlight=False) if as_json else reporter.console
    handler = _Lines(console)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield reporter
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
