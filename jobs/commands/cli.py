"""The commands. Each: options -> one frozen config -> one call -> a summary, and nothing else.

What computes is imported where it is called, for it imports torch, which takes seconds: help,
completion and mistakes in options need none of it.
"""

import click

from jobs.commands.bench import bench_command
from jobs.commands.expand import expand_command
from jobs.commands.inspect import inspect_command
from jobs.commands.options import examples
from jobs.commands.plan import plan_command
from jobs.commands.report import report_command
from jobs.commands.run import run_command
from jobs.commands.verify import verify_command


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


for command in (
    run_command,
    plan_command,
    verify_command,
    expand_command,
    inspect_command,
    report_command,
    bench_command,
):
    cli.add_command(command)
