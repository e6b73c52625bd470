"""Tables for people: of what bench measured."""

from rich.console import Console
from rich.table import Table

from exporters.space import readable
from jobs.bench import BenchResult
from jobs.commands.show import show_stages, show_title
from jobs.endtoend import EndToEnd


def show_bench(console: Console, result: BenchResult, job: EndToEnd | None) -> None:
    """Times and ratios of the ways, what tables cost, and the stages of a whole job."""
    config, figures = result.config, result.figures
    show_title(
        console,
        f"d {config.d_model}, T {config.context_length}, {config.dtype}, medians of "
        f"{config.rounds} rounds of {result.tokens:,} tokens, {result.distinct_tokens:,} distinct",
    )
    table = Table(box=None)
    for heading in ("way", "", "tokens/s", "x notebook", "x addmm", "error"):
        table.add_column(heading, justify="left" if heading in ("way", "") else "right")
    for way in result.ways:
        error = "" if way.error is None else f"{way.error:.1e}"
        table.add_row(
            way.name,
            way.what,
            f"{way.tokens_per_second:,.0f}",
            f"{way.ratio_to_notebook:.2f}",
            f"{way.ratio_to_addmm:.2f}",
            error,
        )
    console.print(table)
    even = figures.break_even_tokens
    pays = (
        "do not pay"
        if even is None
        else f"pay from {even:,} tokens, {even / figures.rows:.1f} a row"
    )
    console.print(
        f"tables: {figures.rows:,} rows, {readable(figures.bytes)}, built in "
        f"{figures.build_seconds:.2f} s, {pays}; combining moves "
        f"{figures.bytes_per_second / 1e9:.1f} GB/s, {figures.share_of_copy:.0%} of a plain copy's "
        f"{figures.copy_bytes_per_second / 1e9:.1f}",
        soft_wrap=True,
    )
    if job is None:
        return
    console.print(
        f"a whole job by {job.method}: {job.tokens:,} tokens, {readable(job.bytes)}, "
        f"{job.seconds:.2f} s",
        soft_wrap=True,
    )
    show_stages(console, job.stages)
