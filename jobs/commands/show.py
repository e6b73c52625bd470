"""Tables for people: of a summary, a plan and stages."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporters.space import readable
from jobs.printable import printable
from jobs.timings import IDLE, OTHER, START_UP, Timing, held_back
from jobs.units import duration

STAGES = {
    START_UP: "until the first stage",
    "check corpus": "is it what it was",
    "check": "is what is kept as it was written",
    "check source": "is it as it was written",
    "tokenise": "text to token ids, written",
    "layer": "the parameters",
    "weights": "the parameters, hashed and written",
    "build": "the tables, written",
    "copy": "tokens and weights",
    "windows": "the shards",
    "compute": "q, k, v and the rest",
    "write": "waiting for the disk and the hash",
    IDLE: "threads without a shard",
    OTHER: "between and after stages",
}
"""What stages and their parts do."""


PLAN_ELSEWHERE = ("reads", "scheme", "exact", "sampled_bytes", "tokens_error")
"""What is shown of a plan, but not under its own name."""


def show_title(console: Console, title: str) -> None:
    """The line above a table, whole: as the table's own title it would be folded to its width."""
    console.print(Text(printable(title), style="table.title"), soft_wrap=True)


def show_pairs(console: Console, title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; sizes in bytes become readable."""
    show_title(console, title)
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name.replace("_", " "), Text(printable(_value(name, value))))
    console.print(table)


def folded(pairs: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
    """Names and values for show_pairs: counts of nothing share a line, and what is None has none.

    Args:
        kept: names of values that keep their lines, whatever they are.
    """
    shown = {k: value for k, value in pairs.items() if k in kept or value not in (0, None)}
    nothing = [name.replace("_", " ") for name in pairs if name not in shown and pairs[name] == 0]
    return shown | ({"none_of": ", ".join(nothing)} if nothing else {})


def show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """What a job would do, and what tables of its layer save."""
    pairs = {name: value for name, value in plan.items() if name not in PLAN_ELSEWHERE}
    sampled = plan.get("sampled_bytes")
    if sampled is not None:
        error = f"{plan['tokens_error']:,}"
        pairs["tokens"] = f"{plan['tokens']:,} (estimated, +-{error} at 95%)"
        pairs["distinct_tokens"] = f"{plan['distinct_tokens']:,} (estimated)"
        for name in ("replaced_sequences", "bad_records", "dropped_tokens"):
            pairs[name] = "not known from a sample"
    show_pairs(console, "plan", folded(pairs, kept=("dropped_tokens", "obstacle")))
    if sampled is not None:
        console.print(
            f"estimated from {readable(sampled)} of {readable(plan['corpus_bytes'])}; "
            "--exact reads all",
            soft_wrap=True,
        )
    if not plan["reads"]:
        return
    console.print(Text(f"reads: {plan['scheme']}", style="table.title"))
    table = Table(box=None)
    for heading in ("batch", "without tables", "with them", "without / with"):
        table.add_column(heading, justify="right")
    for reads in plan["reads"]:
        counts = (f"{reads[name]:,}" for name in ("batch", "without_tables", "with_tables"))
        table.add_row(*counts, f"{reads['times']:,.1f}")
    console.print(table)


def show_stages(console: Console, stages: Sequence[Timing]) -> None:
    """Where the time of a job went, and what held it back."""
    table = Table(box=None)
    for heading in ("stage", "", "time", "share", "tokens/s", "MB/s"):
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for stage in stages:
        tokens, size = stage.tokens_per_second, stage.bytes_per_second
        table.add_row(
            f"  {stage.name}" if stage.within else stage.name,
            STAGES.get(stage.name, ""),
            duration(stage.seconds, 2),
            f"{stage.share:.1%}",
            "" if tokens is None else f"{tokens:,.0f}",
            "" if size is None else f"{size / 1e6:,.1f}",
        )
    console.print(table)
    console.print(held_back(stages), soft_wrap=True)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "known after the draw" if name == "dropped_tokens" else "none"
    if name == "bytes" or name.endswith("_bytes"):
        return readable(value)
    if isinstance(value, tuple):
        return "; ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {amount}" for key, amount in value.items())
    return f"{value:,}" if type(value) is int else str(value)
