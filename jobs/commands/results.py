"""Results on standard output, as tables for people or as JSON."""

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from exporters.bucket import Place
from exporters.errors import ExportError
from jobs.commands import show
from jobs.errors import OutputError

if TYPE_CHECKING:
    from jobs.record import Summary

PIPE_COLUMNS = 120  # of tables that go into a pipe or a file


@contextmanager
def finished(out: Place) -> Iterator[None]:
    """Say of what cannot be printed that the export is finished all the same."""
    try:
        yield
    except OutputError as error:
        raise ExportError(f"{error}; the export at {out} is finished") from error


def print_summary(summary: "Summary", title: str, quiet: bool, as_json: bool) -> None:
    """What a job did, as two tables or as JSON."""
    record = asdict(summary)
    if as_json:
        print_json(record)
    elif not quiet:
        del record["seconds"], record["stages"]  # which the table shows
        show.show_pairs(stdout(), title, show.folded(record))
        if summary.seconds:
            show.show_stages(stdout(), summary.stages)


def print_json(value: Any) -> None:
    """A value as indented JSON; what its encoding or a terminal cannot take is escaped.

    Tensors become lists; JSON has no NaN and no infinities, which become those words.
    """
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(_plain(value), indent=1, ensure_ascii=not unicode, default=str)
    # Such characters stand in strings only, where JSON has the same escape for them.
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def _plain(value: Any) -> Any:
    """A value with nothing in it that JSON does not have."""
    if hasattr(value, "tolist"):  # a tensor, without the import of torch
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def stdout() -> Console:
    """Where tables are printed, as wide as the terminal, or in a pipe or a file as COLUMNS says."""
    if sys.stdout.isatty():
        return Console(file=sys.stdout, highlight=False)
    said = os.environ.get("COLUMNS", "")
    columns = int(said) if re.fullmatch("[0-9]{1,4}", said) else 0
    return Console(file=sys.stdout, highlight=False, width=columns or PIPE_COLUMNS)
