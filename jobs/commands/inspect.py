"""`qkvmill inspect`: an export, one of its windows, or what its values are like."""

from pathlib import Path
from typing import Any

import click
from click import argument, option

from exporters.bucket import Place
from jobs.commands.options import examples
from jobs.commands.types import PlaceOrUrl
from jobs.loading import loading


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
    with loading():
        from jobs.commands.showexport import show
        from jobs.inspection import Question

    show(export, Question(**options), as_json=as_json)
