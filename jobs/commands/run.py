"""`qkvmill run`: the job."""

from typing import Any

import click

from jobs.commands.logs import reporting
from jobs.commands.options import examples, job_options, output_options, verbose_option
from jobs.commands.results import finished, print_summary
from jobs.config import JobConfig
from jobs.loading import loading
from jobs.stopping import stoppable


@click.command(
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
    with loading():
        from jobs.run import run

    with (
        stoppable() as check,
        reporting(
            quiet=quiet, as_json=as_json, verbose=verbose, check=check, began=began
        ) as reporter,
    ):
        summary = run(config, reporter)
    with finished(config.out):
        print_summary(summary, "exported", quiet, as_json)
