"""`qkvmill report`: one HTML page about an export."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click import argument, option

from exporters.bucket import Place
from exporters.manifest import garbled_is_damaged
from exporters.space import readable
from jobs.commands.logs import reporting
from jobs.commands.options import examples, output_options, verbose_option
from jobs.commands.results import print_json
from jobs.commands.types import PlaceOrUrl, SafePath
from jobs.printable import printable
from jobs.report.command import report


@click.command(
    "report",
    short_help="Make one HTML page about an export.",
    epilog=examples(
        "qkvmill report out/first", "qkvmill report out/first --window 0 --window 7 --out page.html"
    ),
)
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--out", type=SafePath(path_type=Path),
        show_default="EXPORT.html; for a URL, its last part in the current folder",
        help="The page; a report that is there is replaced.")  # fmt: skip
@option("--window", "windows", type=click.IntRange(0), multiple=True,
        show_default="three that are spread over the export",
        help="Show this window, counted from 0 (repeatable).")  # fmt: skip
@option("--tokenizer", show_default="by the name in the export",
        help="What shows the ids as text: the folder or tokenizer.json that the export was made "
        "with.")  # fmt: skip
@output_options
@verbose_option
def report_command(
    export: Place, quiet: bool, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Show EXPORT as one HTML page: corpus, tokens, windows, positions, attention and the run.

    The page loads nothing, so it can be opened from disk and sent to others.
    """
    with (
        reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter,
        garbled_is_damaged(export),
    ):
        made = report(export, reporter=reporter, **options)
    if as_json:
        print_json(asdict(made))
    elif not quiet:
        click.echo(f"{printable(made.path)}: {readable(made.bytes)}, open it in a browser")
