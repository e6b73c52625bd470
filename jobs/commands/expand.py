"""`qkvmill expand`: a compact export -> a full one."""

from pathlib import Path

import click
from click import argument, option

from exporters.bucket import Place
from jobs.commands.logs import reporting
from jobs.commands.options import (
    device_option,
    examples,
    output_options,
    scratch_option,
    verbose_option,
)
from jobs.commands.results import finished, print_summary
from jobs.commands.types import PlaceOrUrl
from jobs.config import check_device, check_scratch_use
from jobs.loading import loading
from jobs.stopping import stoppable


@click.command(
    "expand",
    short_help="Turn a compact export into a full one.",
    epilog=examples("qkvmill expand out/compact --out out/full"),
)
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--out", required=True, type=PlaceOrUrl(path_type=Path),
        help="Folder of the full export, or a URL.")  # fmt: skip
@scratch_option
@device_option
@option("--overwrite", is_flag=True, help="Replace a finished export at --out.")
@output_options
@verbose_option
@click.pass_obj
def expand_command(
    began: float | None,
    /,
    export: Place,
    out: Place,
    scratch: Path | None,
    device: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Write the compact export EXPORT as a full one, as run --method tables would have."""
    check_device(device)
    check_scratch_use(out, scratch)
    with loading():
        from jobs.expand import expand as expand_export

    with (
        stoppable() as check,
        reporting(
            quiet=quiet, as_json=as_json, verbose=verbose, check=check, began=began
        ) as reporter,
    ):
        summary = expand_export(
            export, out, device=device, overwrite=overwrite, reporter=reporter, scratch=scratch
        )
    with finished(out):
        print_summary(summary, "expanded", quiet, as_json)
