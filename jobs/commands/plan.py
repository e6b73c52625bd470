"""`qkvmill plan`: what a job would do, or what tables of a model would take."""

from dataclasses import asdict
from functools import partial
from typing import Any

import click
from click import option
from click.core import ParameterSource

from jobs.commands import show
from jobs.commands.logs import reporting
from jobs.commands.options import examples, job_options, output_options, verbose_option
from jobs.commands.results import print_json, stdout
from jobs.config import JobConfig
from jobs.loading import loading

ALLOWED_WITHOUT_CORPUS = (
    "corpus", "config", "weights", "context_length", "quiet", "as_json", "verbose",
)  # fmt: skip


@click.command(
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
    told = ctx.get_parameter_source("context_length") is not ParameterSource.DEFAULT
    config = None
    if options["corpus"]:
        if options["out"] is None:
            raise click.UsageError("Missing option '--out'.")
        config = JobConfig(**options)
    else:
        _check_needless(ctx)
        if options["weights"] is None:
            raise click.UsageError("give a corpus, or a model's folder as --weights")
    with loading():
        from jobs.plan import plan
        from jobs.planmodel import plan_model

    with reporting(quiet=quiet, as_json=as_json, verbose=verbose) as reporter:
        if config is not None:
            record = asdict(plan(config, reporter, exact=exact))
        else:
            length = options["context_length"] if told else None
            record = asdict(plan_model(options["weights"], length))
    if as_json:
        print_json(record)
    elif not quiet:
        show.show_plan(stdout(), record)


def _check_needless(ctx: click.Context) -> None:
    """Raise UsageError for an option that is given and has no effect without a corpus."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not ParameterSource.DEFAULT and name not in ALLOWED_WITHOUT_CORPUS:
            raise click.UsageError(f"{parameter.opts[-1]} has no effect without CORPUS")
