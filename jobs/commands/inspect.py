"""`qkvmill inspect`: an export, one of its windows, or what its values are like."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click import argument, option

from exporters.bucket import Place
from exporters.manifest import Manifest, garbled_is_damaged, read_manifest
from exporters.reading import open_export
from jobs.choose_tokenizer import tokenizer_of_export
from jobs.commands import showexport
from jobs.commands.options import examples
from jobs.commands.results import print_json, stdout
from jobs.commands.types import PlaceOrUrl
from jobs.errors import TokenizerError
from jobs.inspection import Question, open_window, rows_of, stats_of, window_record
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer


@click.command(
    "inspect",
    short_help="Show what an export or a window holds.",
    epilog=examples(
        "qkvmill inspect out/first",
        "qkvmill inspect out/first --window 3 --head 0",
        "qkvmill inspect out/first --stats --tensor q --tensor k",
    ),
)
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--window", type=int, show_default="none", help="Show this window, counted from 0.")
@option("--head", type=int, show_default="none",
        help="With --window: the rows of q, k and v of this query head too, counted from 0; k and "
        "v are of the key/value head that it uses.")  # fmt: skip
@option("--tensor", "tensors", multiple=True, metavar="NAME",
        show_default="with --window x and y, with --stats all",
        help="Show this tensor (repeatable), by its name, such as q or input_ids.")  # fmt: skip
@option("--stats", is_flag=True,
        help="Show what values are like, padded places too: least, largest, mean, standard "
        "deviation, and shares of zeros, NaN and infinity; of all windows, or with --window of "
        "one.")  # fmt: skip
@option("--tokenizer", show_default="by the name in the export",
        help="What shows the ids as text: the folder or tokenizer.json that the export was made "
        "with.")  # fmt: skip
@option("--json", "as_json", is_flag=True,
        help="Print the result as JSON, with all rows.")  # fmt: skip
def inspect_command(export: Place, as_json: bool, **options: Any) -> None:
    """Show what EXPORT holds, one of its windows, or what values of its tensors are like."""
    question = Question(**options)
    manifest = read_manifest(export)
    with garbled_is_damaged(export):
        if question.stats:
            _show_stats(export, question, as_json)
        elif question.window is not None:
            _show_window(export, question, as_json)
        elif as_json:
            print_json(asdict(manifest))
        else:
            showexport.show_export(stdout(), export, manifest)


def _show_window(export: Place, question: Question, as_json: bool) -> None:
    windows = open_export(export)
    index = question.window or 0
    tensors = open_window(windows, index)
    rows = rows_of(windows, tensors, question)
    tokenizer = _tokenizer(export, windows.manifest, question.tokenizer)
    record = window_record(export, windows.manifest, index, tensors, tokenizer)
    if as_json:
        print_json({**record, "rows": {name: asdict(shown) for name, shown in rows.items()}})
    else:
        showexport.show_window(stdout(), record, rows, question.head)


def _tokenizer(export: Place, manifest: Manifest, given: str | None) -> Tokenizer | None:
    """What shows ids as text; without one that was asked for, a line says why there is none."""
    try:
        return tokenizer_of_export(export, manifest.tokenizer, given)
    except TokenizerError as error:
        if given is not None:
            raise
        Reporter().note(f"texts are not shown: {error}")
        return None


def _show_stats(export: Place, question: Question, as_json: bool) -> None:
    windows = open_export(export)
    stats = stats_of(windows, question, Reporter(quiet=as_json))
    if as_json:
        print_json({"window": question.window, "tensors": stats})
    else:
        of = "all windows" if question.window is None else f"window {question.window}"
        padded = windows.manifest.padded
        showexport.show_stats(stdout(), f"{export}, {of}", stats, padded=padded)
