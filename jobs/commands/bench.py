"""`qkvmill bench`: times and ratios of our ways and torch's."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click import argument, option

from jobs.commands.logs import reporting
from jobs.commands.options import device_option, examples, output_options, verbose_option
from jobs.commands.results import print_json, stdout
from jobs.commands.types import COUNT, Choice, SafePath
from jobs.loading import loading
from kernels.names import DTYPE_NAMES


@click.command(
    "bench",
    short_help="Time our ways against torch's.",
    epilog=examples("qkvmill bench --d-model 768", "qkvmill bench corpus/ --d-model 64 --heads 4"),
)
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
    type=Choice(DTYPE_NAMES),
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
@verbose_option
def bench_command(
    corpus: tuple[str, ...],
    d_model: tuple[int, ...],
    heads: int | None,
    quiet: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Time our ways against torch's, side by side, after checking that the results agree.

    With CORPUS the token ids are real and a whole job is timed stage by stage; without, ids follow
    Zipf's law.
    """
    with loading():
        from jobs.bench import BenchConfig, bench
        from jobs.commands.showbench import show_bench
        from jobs.endtoend import end_to_end

    results = []
    with reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter:
        for width in d_model:
            config = BenchConfig(
                d_model=width, heads=heads or max(1, width // 64), corpus=corpus, **options
            )
            result = bench(config, reporter)
            results.append((result, end_to_end(config) if corpus else None))
    if as_json:
        print_json([
            {**asdict(result), "job": asdict(job) if job else None} for result, job in results
        ])  # fmt: skip
    elif not quiet:
        for result, job in results:
            show_bench(stdout(), result, job)
