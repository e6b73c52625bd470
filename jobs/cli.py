"""The command line: options -> one frozen config -> one call -> a summary. Nothing else."""

import json
import os
import re
import reprlib
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
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

from exporters.errors import ExportError
from exporters.manifest import garbled_is_damaged, read_manifest
from exporters.reading import open_export
from exporters.safefile import open_regular
from exporters.sample import draw, recompute
from exporters.space import readable
from exporters.verify import bytes_to_check
from exporters.verify import verify as verify_export
from jobs import show
from jobs.bench import BenchConfig, BenchResult, bench
from jobs.choose_tokenizer import tokenizer_of_export
from jobs.config import D_MODEL, EXPORTS, HEADS, JobConfig, check_device
from jobs.endtoend import EndToEnd, end_to_end
from jobs.errors import ConfigError, OutputError
from jobs.expand import expand as expand_export
from jobs.plan import Plan
from jobs.plan import plan as plan_job
from jobs.planmodel import ModelPlan, plan_model
from jobs.printable import printable
from jobs.progress import Reporter
from jobs.run import run as run_job
from jobs.shortage import shortage
from jobs.stopping import StoppedError, stoppable
from jobs.streams import mend_streams
from jobs.tokenizer import ENCODINGS
from kernels.errors import QkvmillError
from kernels.layer import DTYPES

INTERRUPTED = 130
PIPE_CLOSED = 141
TOML_NAMES = {bool: "true or false", int: "a whole number", str: "a string"}
MAX_CONFIG_BYTES = 1 << 20
MAX_MESSAGE = 2000  # characters; what is named in it may be of any length
PIPE_COLUMNS = 120  # of tables that go into a pipe or a file

COUNT = click.IntRange(1, 2**31 - 1)

SIZE_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class Size(click.ParamType[int]):
    """A number of bytes with an optional unit: 512MB, 1.5GiB, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        number = text.rstrip("BbKkMmGgTtIi ")
        unit = text[len(number) :].strip().upper()
        try:
            size = int(float(number) * SIZE_UNITS[unit])
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is not a size such as 512MB or 1GiB", param, ctx)
        return size


class SafePath(click.Path):
    """A path that is not empty, which would mean the current folder, and is UTF-8.

    safetensors opens no other paths; only a corpus, which it does not open, may have one.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        if "\0" in value:
            self.fail(f"the path {value!r} holds a NUL", param, ctx)
        if param is not None and param.name != "corpus":
            try:
                os.fsencode(value).decode()
            except UnicodeDecodeError:
                self.fail(f"the path {os.fsencode(value)!r} is not UTF-8", param, ctx)
        return super().convert(value, param, ctx)


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take defaults from a TOML file whose keys are the long options' names."""
    if path is None:
        return
    try:
        with open_regular(path) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        values = tomllib.loads(text.decode())
    except ExportError as error:
        raise click.UsageError(f"--config {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"--config {path} could not be read: {reason}") from error
    known = {parameter.name: parameter for parameter in ctx.command.params}
    defaults = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        parameter = known.get(name)
        if parameter is None or parameter.name == "config":
            raise click.UsageError(f"--config {path}: {key!r} is not an option of {ctx.info_name}")
        repeatable = parameter.multiple or parameter.nargs == -1
        if isinstance(value, list) != repeatable:
            kind = "a list" if repeatable else "one value, not a list"
            raise click.UsageError(f"--config {path}: {key!r} takes {kind}")
        for item in value if repeatable else [value]:
            if type(item) not in _toml_types(parameter):
                kinds = " or ".join(TOML_NAMES[kind] for kind in _toml_types(parameter))
                raise click.UsageError(
                    f"--config {path}: {key!r} takes {kinds}, not {reprlib.repr(item)}"
                )
        defaults[name] = value
    ctx.default_map = defaults


def _toml_types(parameter: click.Parameter) -> tuple[type, ...]:
    """The types of TOML values that an option takes."""
    if getattr(parameter, "is_flag", False):
        return (bool,)
    if isinstance(parameter.type, click.types.IntParamType):
        return (int,)
    if isinstance(parameter.type, Size) or parameter.name == "vocab_size":
        return (str, int)
    return (str,)


device_option = option("--device", metavar="[auto|cpu|cuda|cuda:N]", default="auto",
                       show_default=True, help="Where to compute.")  # fmt: skip


def job_options(command: Callable[..., None], *, needed: bool = True) -> Callable[..., None]:
    """The options that `run` and `plan` share, in the order in which help shows them.

    `needed` says that there is no job without a corpus and a place for the export.
    """
    path = SafePath(path_type=Path)
    options = [
        argument("corpus", nargs=-1, required=needed, type=path),
        option("--out", required=needed, type=path, help="Folder of the export."),
        option("--config", type=path, is_eager=True, expose_value=False, callback=read_config,
                     help="TOML file with any of these options by name; flags win over it."),
        option("--tokenizer", show_default="the folder that --weights names, else cl100k_base",
                     help=f"One of {', '.join(ENCODINGS)}; or the folder of a model or its "
                     "tokenizer.json."),
        option("--separator", type=Choice(["eot", "none"]), default="eot", show_default=True,
                     help="What stands between documents: the end-of-text token or nothing."),
        option("--text-errors", type=Choice(["strict", "replace"]), default="strict",
                     show_default=True,
                     help="Bytes that are not UTF-8: stop, or put U+FFFD and count them."),
        option("--context-length", type=int, default=1024, show_default=True,
                     help="Tokens in a window, T."),
        option("--sampling", type=Choice(["sequential", "random"]), default="sequential",
                     show_default=True, help="Windows in order, or drawn with torch.randint."),
        option("--stride", type=int, show_default="the context length",
                     help="Tokens from one sequential window to the next."),
        option("--batch-size", type=int, default=8, show_default=True,
                     help="Windows in a batch; a shard holds whole batches."),
        option("--batches", type=int, show_default="all, or 1 with random sampling",
                     help="Batches to export."),
        option("--seed", type=int, default=0, show_default=True,
                     help="Seed of the layer's parameters and of random sampling."),
        option("--weights", type=path,
                     help="The layer of a model's folder (config.json and safetensors), or of one "
                     ".safetensors file, instead of the seed's."),
        option("--d-model", type=int, show_default=f"{D_MODEL}, or as in --weights",
                     help="Model width, d."),
        option("--heads", type=int, show_default=f"{HEADS}, or as in --weights",
                     help="Query heads, H."),
        option("--kv-heads", type=int, show_default="the heads, or as in --weights",
                     help="Key/value heads, Hk."),
        option("--positions", type=Choice(["sinusoidal", "learned", "rope", "none"]),
                     show_default="sinusoidal, or as in --weights",
                     help="Positions: a table that is added to the embedding, or rope, by which q "
                     "and k turn."),
        option("--pre-rope", is_flag=True,
                     help="Export q and k as they are before they turn by rotary positions."),
        option("--vocab-size", metavar="[encoding|corpus|N]", show_default="encoding",
                     help="Rows of the embedding that the seed makes; corpus: largest id + 1."),
        option("--export", multiple=True, type=Choice(EXPORTS), default=("tokens", "qkv"),
                     show_default=True,
                     help="What shards hold (repeatable): tokens (input, target and document ids), "
                     "features (x and y), qkv (q, k and v)."),
        option("--artifact", type=Choice(["full", "compact"]), default="full", show_default=True,
                     help="full: every window, in shards. compact: the token stream and the tables "
                     "that q, k and v are made from; expand makes it full."),
        option("--method", type=Choice(["auto", "direct", "tables"]), default="auto",
                     show_default=True,
                     help="How q, k and v are computed: token by token, or from tables of the "
                     "projected vocabulary and positions. auto: tables where they pay."),
        option("--save-weights/--no-save-weights", default=True, show_default=True,
                     help="Store the layer beside the export; without, its hash and source."),
        option("--dtype", type=Choice(list(DTYPES)), default="float32", show_default=True,
                     help="Of the layer and of the features, q, k and v."),
        option("--layout", type=Choice(["bhtd", "bthd"]), default="bhtd", show_default=True,
                     help="q, k and v as [W, H, T, Dh] or as [W, T, H, Dh]."),
        device_option,
        option("--tf32", is_flag=True,
                     help="On a GPU and by --method direct, float32 products on TF32 tensor cores: "
                     "faster, less exact."),
        option("--shard-size", type=Size(), default="512MB", show_default=True,
                     help="Most bytes of tensors in one shard."),
        option("--overwrite", is_flag=True,
                     help="Replace a finished export at --out, or an unfinished one of another "
                     "job."),
    ]  # fmt: skip
    for add in reversed(options):
        command = add(command)
    return command


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """--quiet and --json."""
    command = option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)
    return option("--quiet", is_flag=True, help="Print nothing but errors and --json.")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qkvmill", prog_name="qkvmill", message="%(prog)s %(version)s")
def cli() -> None:
    """Turn text into token windows, embeddings with positions, and Q, K, V, as safetensors."""


@cli.command("run", short_help="Do the job: text in, safetensors out.")
@job_options
@output_options
def run_command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Tokenize CORPUS (.txt files and folders of them), compute, and export to --out."""
    config = JobConfig(**options)
    with stoppable() as check:
        summary = run_job(config, Reporter(quiet=quiet or as_json, check=check))
    with _finished(config.out):
        _print(asdict(summary), "exported", quiet, as_json)


@cli.command("plan", short_help="Say what run would do; write nothing.")
@partial(job_options, needed=False)
@output_options
@click.pass_context
def plan_command(ctx: click.Context, /, quiet: bool, as_json: bool, **options: Any) -> None:
    """Say what run would do with the same options, and write nothing.

    Without CORPUS, say what tables of the model in the folder --weights would take and save; of it
    only config.json is needed.
    """
    result: Plan | ModelPlan
    if options["corpus"]:
        if options["out"] is None:
            raise click.UsageError("Missing option '--out'.")
        result = plan_job(JobConfig(**options), Reporter(quiet=quiet or as_json))
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
@argument("export", type=SafePath(path_type=Path))
@option("--window", type=int, help="Show this window, counted from 0.")
@option("--tokenizer", show_default="by the name in the export",
        help="What shows the ids as text: the folder or tokenizer.json that the export was made "
        "with.")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def inspect_command(export: Path, window: int | None, tokenizer: str | None, as_json: bool) -> None:
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
@argument("export", type=SafePath(path_type=Path))
@option("--sample", type=click.IntRange(1), metavar="N", show_default="none",
        help="Recompute N windows too, in float64 from the tokens and the stored layer; the same "
        "windows each time, all if there are no more.")  # fmt: skip
@output_options
def verify_command(export: Path, sample: int | None, quiet: bool, as_json: bool) -> None:
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
@argument("export", type=SafePath(path_type=Path))
@option("--out", required=True, type=SafePath(path_type=Path), help="Folder of the full export.")
@device_option
@option("--overwrite", is_flag=True, help="Replace a finished export at --out.")
@output_options
def expand_command(
    export: Path, out: Path, device: str, overwrite: bool, quiet: bool, as_json: bool
) -> None:
    """Write the compact export EXPORT as a full one, as run --method tables would have."""
    check_device(device)
    with stoppable() as check:
        reporter = Reporter(quiet=quiet or as_json, check=check)
        summary = expand_export(export, out, device=device, overwrite=overwrite, reporter=reporter)
    with _finished(out):
        _print(asdict(summary), "expanded", quiet, as_json)


@cli.command("bench", short_help="Time our ways against torch's.")
@argument("corpus", nargs=-1, type=SafePath(path_type=Path))
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
    corpus: tuple[Path, ...],
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


def _window(export: Path, index: int) -> dict[str, Tensor]:
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
def _finished(out: Path) -> Iterator[None]:
    """Say of what cannot be printed that the export is finished all the same."""
    try:
        yield
    except OutputError as error:
        raise ExportError(f"{error}; the export at {out} is finished") from error


def _print(result: dict[str, Any], title: str, quiet: bool, as_json: bool) -> None:
    if as_json:
        _print_json(result)
    elif not quiet:
        show.show_pairs(_stdout(), title, result)


def _print_json(value: Any) -> None:
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(value, indent=1, ensure_ascii=not unicode, default=str)
    # Such characters stand in strings only, where JSON has the same escape for them.
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def _stdout() -> Console:
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(file=sys.stdout, highlight=False, width=width)
