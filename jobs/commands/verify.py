"""`qkvmill verify`: whether an export is as it was written."""

from dataclasses import asdict
from pathlib import Path

import click
from click import argument, option

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.manifest import garbled_is_damaged
from exporters.space import readable
from jobs.commands.logs import reporting
from jobs.commands.options import examples, output_options, verbose_option
from jobs.commands.results import print_json
from jobs.commands.types import PlaceOrUrl
from jobs.loading import loading
from jobs.printable import printable


@click.command(
    "verify",
    short_help="Check an export's bytes, shapes and, with --sample, values.",
    epilog=examples("qkvmill verify out/first", "qkvmill verify out/first --sample 5"),
)
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--sample", type=click.IntRange(1), metavar="N", show_default="none",
        help="Recompute N windows too, in float64 from the tokens and the stored layer; the same "
        "windows each time, all if there are no more.")  # fmt: skip
@output_options
@verbose_option
def verify_command(
    export: Place, sample: int | None, quiet: bool, as_json: bool, verbose: bool
) -> None:
    """Check every byte of EXPORT against its hash and every shape against the manifest."""
    with loading():
        from exporters.sample import draw, recompute
        from exporters.verify import bytes_to_check, verify

    windows: tuple[int, ...] = ()
    with reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter:
        with (
            garbled_is_damaged(export),
            reporter.stage("verify", bytes_to_check(export), "bytes") as advance,
        ):
            findings = verify(export, advance)
        problems = findings.problems
        if sample is not None and not problems:
            windows = draw(export, sample)
            with reporter.stage("sample", len(windows), "windows") as advance:
                problems = recompute(export, windows, advance)
    if as_json:
        print_json({**asdict(findings), "problems": problems, "windows": windows})
    if problems:
        shown = "; ".join(problems[:10])
        more = len(problems) - 10
        raise ExportError(
            f"{export}: {shown}"
            + (f"; and {more} more" if more > 0 else "")
            + "; the command that made it makes it anew with --overwrite"
        )
    if not quiet and not as_json:
        sized = readable(findings.bytes)
        shown = printable(str(export))
        click.echo(f"{shown}: {findings.files} files, {sized}, all as they were written")
        if windows:
            click.echo(f"{shown}: {len(windows)} windows recomputed, all as they should be")
