"""The commands: options -> one frozen config -> one call -> a summary. Nothing else."""

import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from click import Choice, argument, option
from click.core import ParameterSource
from rich.console import Console
from torch import Tensor

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.manifest import garbled_is_damaged, read_manifest
from exporters.reading import open_export
from exporters.sample import draw, recompute
from exporters.space import readable
from exporters.verify import bytes_to_check
from exporters.verify import verify as verify_export
from jobs import show
from jobs.bench import BenchConfig, BenchResult, bench
from jobs.choose_tokenizer import tokenizer_of_export
from jobs.config import JobConfig, check_device, check_scratch_use
from jobs.endtoend import EndToEnd, end_to_end
from jobs.errors import ConfigError, OutputError
from jobs.expand import expand as expand_export
from jobs.options import (
    COUNT,
    PlaceOrUrl,
    SafePath,
    device_option,
    job_options,
    output_options,
    scratch_option,
)
from jobs.plan import Plan
from jobs.plan import plan as plan_job
from jobs.planmodel import ModelPlan, plan_model
from jobs.printable import printable
from jobs.progress import Reporter
from jobs.record import Summary
from jobs.run import run as run_job
from jobs.shortage import shortage
from jobs.stopping import StoppedError, stoppable
from jobs.streams import mend_streams
from kernels.errors import QkvmillError
from kernels.layer import DTYPES

INTERRUPTED = 130
PIPE_CLOSED = 141
MAX_MESSAGE = 2000  # characters; what is named in it may be of any length
PIPE_COLUMNS = 120  # of tables that go into a pipe or a file

program_began: float | None = None
"""When the program did, by time.monotonic; None where the commands are called from another one."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qkvmill", prog_name="qkvmill", message="%(prog)s %(version)s")
def cli() -> None:
    """Turn text into token windows, embeddings with positions, and Q, K, V, as safetensors."""


@cli.command("run", short_help="Do the job: text in, safetensors out.")
@job_options
@output_options
def run_command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Tokenize CORPUS, compute, and export to --out.

    CORPUS: files, folders, patterns, URLs, @ and a file that lists them, or - for standard input.
    """
    config = JobConfig(**options)
    with stoppable() as check:
        reporter = Reporter(quiet=quiet or as_json, check=check, began=program_began)
        summary = run_job(config, reporter)
    with _finished(config.out):
        _print_summary(summary, "exported", quiet, as_json)


@cli.command("plan", short_help="Say what run would do; write nothing.")
@partial(job_options, needed=False)
@option("--exact", is_flag=True,
        help="Read the whole corpus, also where it is large, and estimate nothing.")  # fmt: skip
@output_options
@click.pass_context
def plan_command(
    ctx: click.Context, /, exact: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Say what run would do with the same options, and write nothing.

    Of a corpus of more than 16 MB a sample is read, and its tokens are estimated, with the error.

    Without CORPUS, say what tables of the model in the folder --weights would take and save; of it
    only config.json is needed.
    """
    result: Plan | ModelPlan
    if options["corpus"]:
        if options["out"] is None:
            raise click.UsageError("Missing option '--out'.")
        result = plan_job(JobConfig(**options), Reporter(quiet=quiet or as_json), exact=exact)
    else:
        _check_needless(ctx, ("config", "weights", "context_length", "quiet", "as_json"))
        if options["weights"] is None:
            raise click.UsageError("give a corpus, or a model's folder as --weights")
        told = ctx.get_parameter_source("context_length") is not ParameterSource.DEFAULT
        result = plan_model(options["weights"], options["context_length"] if told else None)
    if as_json:
        _print_json(asdict(result))
    elif not quiet:
        show.show_plan(_stdout(), asdict(result))


def _check_needless(ctx: click.Context, allowed: Collection[str]) -> None:
    """Raise UsageError for an option that is given and has no effect without a corpus."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not ParameterSource.DEFAULT and name not in (*allowed, "corpus"):
            raise click.UsageError(f"{parameter.opts[-1]} has no effect without CORPUS")


@cli.command("inspect", short_help="Show what an export or a window holds.")
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--window", type=int, help="Show this window, counted from 0.")
@option("--tokenizer", show_default="by the name in the export",
        help="What shows the ids as text: the folder or tokenizer.json that the export was made "
        "with.")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def inspect_command(
    export: Place, window: int | None, tokenizer: str | None, as_json: bool
) -> None:
    """Show what EXPORT holds, or one of its windows: its text, ids and features."""
    if window is None and tokenizer is not None:
        raise ConfigError("--tokenizer has no effect without --window; leave it out")
    console = _stdout()
    manifest = read_manifest(export)
    with garbled_is_damaged(export):
        if window is None:
            if as_json:
                _print_json(asdict(manifest))
            else:
                show.show_export(console, export, manifest)
            return
        tensors = _window(export, window)
        decoder = tokenizer_of_export(export, manifest.tokenizer, tokenizer)
        record = show.window_record(export, manifest, window, tensors, decoder)
        if as_json:
            _print_json(record)
        else:
            show.show_window(console, record, tensors)


@cli.command("verify", short_help="Check an export's bytes, shapes and, with --sample, values.")
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--sample", type=click.IntRange(1), metavar="N", show_default="none",
        help="Recompute N windows too, in float64 from the tokens and the stored layer; the same "
        "windows each time, all if there are no more.")  # fmt: skip
@output_options
def verify_command(export: Place, sample: int | None, quiet: bool, as_json: bool) -> None:
    """Check every byte of EXPORT against its hash and every shape against the manifest."""
    reporter = Reporter(quiet=quiet or as_json)
    with (
        garbled_is_damaged(export),
        reporter.stage("verify", bytes_to_check(export), "bytes") as advance,
    ):
        findings = verify_export(export, advance)
    problems = findings.problems
    windows: tuple[int, ...] = ()
    if sample is not None and not problems:
        windows = draw(export, sample)
        with reporter.stage("sample", len(windows), "windows") as advance:
            problems = recompute(export, windows, advance)
    if as_json:
        _print_json({**asdict(findings), "problems": problems, "windows": windows})
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


@cli.command("expand", short_help="Turn a compact export into a full one.")
@argument("export", type=PlaceOrUrl(path_type=Path))
@option("--out", required=True, type=PlaceOrUrl(path_type=Path),
        help="Folder of the full export, or a URL.")  # fmt: skip
@scratch_option
@device_option
@option("--overwrite", is_flag=True, help="Replace a finished export at --out.")
@output_options
def expand_command(
    export: Place,
    out: Place,
    scratch: Path | None,
    device: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the compact export EXPORT as a full one, as run --method tables would have."""
    check_device(device)
    check_scratch_use(out, scratch)
    with stoppable() as check:
        reporter = Reporter(quiet=quiet or as_json, check=check, began=program_began)
        summary = expand_export(
            export, out, device=device, overwrite=overwrite, reporter=reporter, scratch=scratch
        )
    with _finished(out):
        _print_summary(summary, "expanded", quiet, as_json)


@cli.command("bench", short_help="Time our ways against torch's.")
@argument("corpus", nargs=-1, type=SafePath())
@option(
    "--d-model",
    type=COUNT,
    multiple=True,
    default=(64, 768),
    show_default=True,
    help="Model width (repeatable).",
)
@option(
    "--heads",
    type=COUNT,
    show_default="one for each 64 of the width",
    help="Query and key/value heads.",
)
@option(
    "--context-length",
    type=COUNT,
    default=1024,
    show_default=True,
    help="Tokens in a window, T.",
)
@option("--tokens", type=COUNT, default=65536, show_default=True, help="Tokens in a round.")
@option(
    "--dtype",
    type=Choice(list(DTYPES)),
    default="float32",
    show_default=True,
    help="Of the layer and of q, k and v.",
)
@device_option
@option("--tf32", is_flag=True, help="On a GPU, float32 products on TF32 tensor cores.")
@option(
    "--rounds",
    type=COUNT,
    default=5,
    show_default=True,
    help="Rounds; each times every way.",
)
@option(
    "--scratch",
    type=SafePath(path_type=Path, exists=True, file_okay=False),
    show_default="the system's",
    help="Folder for the whole job's temporary export.",
)
@output_options
def bench_command(
    corpus: tuple[str, ...],
    d_model: tuple[int, ...],
    heads: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Time our ways against torch's, side by side, after checking that the results agree.

    With CORPUS the token ids are real and a whole job is timed stage by stage; without, ids follow
    Zipf's law.
    """
    reporter = Reporter(quiet=quiet or as_json)
    results: list[tuple[BenchResult, EndToEnd | None]] = []
    for width in d_model:
        config = BenchConfig(
            d_model=width, heads=heads or max(1, width // 64), corpus=corpus, **options
        )
        result = bench(config, reporter)
        results.append((result, end_to_end(config) if corpus else None))
    if as_json:
        _print_json([
            {**asdict(result), "job": asdict(job) if job else None} for result, job in results
        ])  # fmt: skip
    elif not quiet:
        for result, job in results:
            show.show_bench(_stdout(), result, job)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status after printing any error as one line.

    0 done, 1 could not, 2 wrong usage, 130 stopped by SIGINT, 143 by SIGTERM. Where the reader of
    standard output has gone, as with `| head`, nothing is printed and the status is 141, which
    shells give to tools that such a pipe ended; run and expand, whose work is done by then, say so
    instead, with status 1.
    """
    mend_streams()
    try:
        status = _run_command(arguments)
        sys.stdout.flush()
        return status
    except OutputError as error:
        if error.closed:
            return PIPE_CLOSED
        _fail(str(error))
        return 1


def _run_command(arguments: Sequence[str] | None) -> int:
    """As main; raises OutputError where standard output takes no more."""
    try:
        # Without standalone mode click raises its errors instead of printing them over lines.
        status = cli.main(arguments, prog_name="qkvmill", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.Abort:
        _fail("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        _fail(error.format_message())
        return error.exit_code
    except ConfigError as error:
        _fail(str(error))
        return 2
    except StoppedError as stopped:
        _fail(str(stopped))
        return stopped.status
    except OutputError:
        raise
    except QkvmillError as error:
        _fail(str(error))
        return 1
    except (MemoryError, OSError, RuntimeError) as error:
        if said := shortage(error):
            _fail(said)
        elif isinstance(error, OSError):
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}")
        else:
            raise
        return 1


def _window(export: Place, index: int) -> dict[str, Tensor]:
    windows = open_export(export)
    if not 0 <= index < len(windows):
        raise ExportError(
            f"{export} has windows 0 to {len(windows) - 1}; --window {index} is none of them"
        )
    return windows[index]


def _fail(message: str) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 :]}"
    click.echo(f"Error: {line}", err=True)


@contextmanager
def _finished(out: Place) -> Iterator[None]:
    """Say of what cannot be printed that the export is finished all the same."""
    try:
        yield
    except OutputError as error:
        raise ExportError(f"{error}; the export at {out} is finished") from error


def _print_summary(summary: Summary, title: str, quiet: bool, as_json: bool) -> None:
    record = asdict(summary)
    if as_json:
        _print_json(record)
    elif not quiet:
        del record["seconds"], record["stages"]  # which the table shows
        show.show_pairs(_stdout(), title, record)
        show.show_stages(_stdout(), summary.stages)


def _print_json(value: Any) -> None:
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(value, indent=1, ensure_ascii=not unicode, default=str)
    # Such characters stand in strings only, where JSON has the same escape for them.
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def _stdout() -> Console:
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(file=sys.stdout, highlight=False, width=width)
