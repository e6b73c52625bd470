"""The commands: options -> one frozen config -> one call -> a summary. Nothing else."""

from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from click import argument, option
from click.core import ParameterSource

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.manifest import garbled_is_damaged
from exporters.sample import draw, recompute
from exporters.space import readable
from exporters.verify import bytes_to_check
from exporters.verify import verify as verify_export
from jobs.commands import show
from jobs.commands.bench import bench_command
from jobs.commands.inspect import inspect_command
from jobs.commands.logs import reporting
from jobs.commands.options import (
    device_option,
    examples,
    job_options,
    output_options,
    scratch_option,
    verbose_option,
)
from jobs.commands.report import report_command
from jobs.commands.results import finished, print_json, print_summary, stdout
from jobs.commands.types import PlaceOrUrl
from jobs.config import JobConfig, check_device, check_scratch_use
from jobs.expand import expand as expand_export
from jobs.plan import Plan
from jobs.plan import plan as plan_job
from jobs.planmodel import ModelPlan, plan_model
from jobs.printable import printable
from jobs.run import run as run_job
from jobs.stopping import stoppable


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "qkvmill plan corpus/ --out out/first",
        "qkvmill run corpus/ --out out/first",
        "qkvmill inspect out/first --window 0",
    ),
)
@click.version_option(package_name="qkvmill", prog_name="qkvmill", message="%(prog)s %(version)s")
def cli() -> None:
    """Turn text into token windows, embeddings with positions, and Q, K, V, as safetensors."""


@cli.command(
    "run",
    short_help="Do the job: text in, safetensors out.",
    epilog=examples(
        "qkvmill run corpus/ --out out/first --context-length 256 --d-model 64 --heads 4",
        "qkvmill run 'crawl/**/*.jsonl.zst' --out out/qwen --weights models/qwen --dtype bfloat16",
    ),
)
@job_options
@output_options
@verbose_option
@click.pass_obj
def run_command(
    began: float | None, /, quiet: bool, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Tokenize CORPUS, compute, and export to --out.

    CORPUS: files, folders, patterns, URLs, @ and a file that lists them, or - for standard input.
    """
    config = JobConfig(**options)
    with (
        stoppable() as check,
        reporting(
            quiet=quiet, as_json=as_json, verbose=verbose, check=check, began=began
        ) as reporter,
    ):
        summary = run_job(config, reporter)
    with finished(config.out):
        print_summary(summary, "exported", quiet, as_json)


@cli.command(
    "plan",
    short_help="Say what run would do; write nothing.",
    epilog=examples(
        "qkvmill plan corpus/ --out out/first --context-length 256",
        "qkvmill plan --weights models/qwen",
    ),
)
@partial(job_options, needed=False)
@option("--exact", is_flag=True,
        help="Read the whole corpus, also where it is large, and estimate nothing.")  # fmt: skip
@output_options
@verbose_option
@click.pass_context
def plan_command(
    ctx: click.Context, /, exact: bool, quiet: bool, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Say what run would do with the same options, and write nothing.

    Of a corpus of more than 16 MB a sample is read, and its tokens are estimated, with the error.

    Without CORPUS, say what tables of the model in the folder --weights would take and save; of it
    only config.json is needed.
    """
    result: Plan | ModelPlan
    with reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter:
        if options["corpus"]:
            if options["out"] is None:
                raise click.UsageError("Missing option '--out'.")
            result = plan_job(JobConfig(**options), reporter, exact=exact)
        else:
            allowed = ("config", "weights", "context_length", "quiet", "as_json", "verbose")
            _check_needless(ctx, allowed)
            if options["weights"] is None:
                raise click.UsageError("give a corpus, or a model's folder as --weights")
            told = ctx.get_parameter_source("context_length") is not ParameterSource.DEFAULT
            result = plan_model(options["weights"], options["context_length"] if told else None)
    if as_json:
        print_json(asdict(result))
    elif not quiet:
        show.show_plan(stdout(), asdict(result))


def _check_needless(ctx: click.Context, allowed: Collection[str]) -> None:
    """Raise UsageError for an option that is given and has no effect without a corpus."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not ParameterSource.DEFAULT and name not in (*allowed, "corpus"):
            raise click.UsageError(f"{parameter.opts[-1]} has no effect without CORPUS")


@cli.command(
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
    windows: tuple[int, ...] = ()
    with reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter:
        with (
            garbled_is_damaged(export),
            reporter.stage("verify", bytes_to_check(export), "bytes") as advance,
        ):
            findings = verify_export(export, advance)
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
        raise ExportError(f"{export}: {shown}" + (f"; and {more} more" if more > 0 else ""))
    if not quiet and not as_json:
        sized = readable(findings.bytes)
        shown = printable(str(export))
        click.echo(f"{shown}: {findings.files} files, {sized}, all as they were written")
        if windows:
            click.echo(f"{shown}: {len(windows)} windows recomputed, all as they should be")


@cli.command(
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


cli.add_command(inspect_command)
cli.add_command(report_command)
cli.add_command(bench_command)
