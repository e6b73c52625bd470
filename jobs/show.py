"""Tables for people: of a summary, a plan, an export, one of its windows."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from exporters.bucket import Place
from exporters.contents import exported_tensors
from exporters.errors import ExportError
from exporters.manifest import Manifest
from exporters.reading import open_stream
from exporters.space import readable
from jobs.bench import BenchResult
from jobs.endtoend import EndToEnd
from jobs.printable import printable
from jobs.timings import IDLE, OTHER, START_UP, Timing, held_back
from jobs.tokenizer import Tokenizer
from jobs.units import duration

EDGE_ROWS = 5  # rows and columns that are shown at each end of a long table
EDGE_COLUMNS = 3

STAGES = {
    START_UP: "until the first stage",
    "check corpus": "is it what it was",
    "check": "is what is kept as it was written",
    "check source": "is it as it was written",
    "tokenise": "text to token ids, written",
    "layer": "the parameters",
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


def show_pairs(console: Console, title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; sizes in bytes become readable."""
    heading = Text(printable(title), style="table.title")
    table = Table(title=heading, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name.replace("_", " "), Text(printable(_value(name, value))))
    console.print(table)


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
    show_pairs(console, "plan", pairs)
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


def show_export(console: Console, root: Place, manifest: Manifest) -> None:
    """What an export holds."""
    pairs: dict[str, Any] = {
        "artifact": manifest.job["artifact"],
        "documents": manifest.tokens["documents"],
        "corpus_bytes": manifest.corpus["bytes"],
        "skipped_files": manifest.corpus["skipped_files"],
        "replaced_sequences": manifest.corpus["replaced_sequences"],
        "tokenizer": manifest.tokenizer["name"],
        "tokens": manifest.tokens["count"],
        "distinct_tokens": manifest.tokens["distinct"],
        "windows": manifest.windows["count"],
        "context_length": manifest.windows["context_length"],
        "boundaries": manifest.windows["boundaries"],
        "tail": manifest.windows["tail"],
        "padded_windows": manifest.windows["padded_windows"],
        "padded_places": manifest.windows["padded_places"],
        "dropped_tokens": manifest.windows["dropped_tokens"],
        "short_documents": manifest.windows["short_documents"],
    }
    if manifest.layer is not None:
        layer = manifest.layer
        origin = layer["source"] if layer["family"] is None else f"model {layer['family']}"
        pairs["layer"] = (
            f"{origin}, V {layer['vocabulary_size']}, d {layer['d_model']}, "
            f"{layer['heads']} heads, {layer['kv_heads']} key/value heads of {layer['head_dim']}, "
            f"norm {layer['norm']}, positions {layer['positions']}, {layer['dtype']}"
        )
    if manifest.compute is not None:
        compute = manifest.compute
        pairs["device"] = f"{compute['device']}, {compute['kernel']}: {compute['reason']}"
        if compute["method"] is not None:
            pairs["method"] = f"{compute['method']}: {compute['method_reason']}"
    show_pairs(console, str(root), pairs)

    title = (
        "tensors of the windows, from the tables" if manifest.compact else "tensors of the shards"
    )
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("name", "dtype", "shape, W windows"):
        table.add_column(heading)
    for name, plan in exported_tensors(manifest).items():
        lengths = zip(_axes(name, manifest.job["layout"]), plan.shape, strict=True)
        shape = ", ".join(["W", *(f"{axis} {length}" for axis, length in lengths)])
        table.add_row(name, str(plan.dtype).removeprefix("torch."), Text(f"[{shape}]"))
    console.print(table)

    table = Table(title="files", title_justify="left", box=None)
    for heading in ("name", "size", "holds"):
        table.add_column(heading)
    for entry in manifest.files:
        last = entry.first + entry.count - 1
        holds = f"{entry.kind} {entry.first} to {last}" if entry.count else entry.kind
        table.add_row(Text(entry.name), readable(entry.bytes), holds)
    console.print(table)


def _axes(name: str, layout: str) -> tuple[str, ...]:
    """The axes of a tensor of the shards, after the windows."""
    if name == "window_start":
        return ()
    if name in ("x", "y"):
        return ("T", "d")
    if name in ("q", "k", "v"):
        heads = "H" if name == "q" else "Hk"
        return (heads, "T", "Dh") if layout == "bhtd" else ("T", heads, "Dh")
    return ("T",)


def window_record(
    root: Place, manifest: Manifest, index: int, tensors: Mapping[str, Tensor], tokenizer: Tokenizer
) -> dict[str, Any]:
    """A window's ids and texts, read from the token stream, for people and for --json.

    Texts are of the real places only; ids are of all.
    """
    length = manifest.windows["context_length"]
    stream = open_stream(root, manifest)
    start = int(tensors["window_start"])
    pairs = int(tensors["mask"].sum()) if "mask" in tensors else length
    if start < 0 or pairs < 1 or start + pairs >= stream.tokens:
        raise ExportError(f"{root}: window {index} begins beyond its {stream.tokens} tokens")
    ids = stream.read(start, start + pairs + 1).tolist()
    padding = [manifest.padding] * (length - pairs)
    documents = stream.documents(start, start + pairs).tolist()
    files = manifest.corpus["files"]
    ends = list(accumulate(file["documents"] for file in files))  # of each file's documents
    if not all(0 <= document < ends[-1] for document in documents):
        raise ExportError(f"{root}: window {index} is of a document that the manifest lacks")
    return {
        "window": index,
        "start": start,
        "documents": [
            {"index": document, "name": files[bisect_right(ends, document)]["name"]}
            for document in sorted(set(documents))
        ],
        "padded_places": len(padding),
        "input_ids": ids[:-1] + padding,
        "target_ids": ids[1:] + padding,
        "input_text": tokenizer.decode(ids[:-1]),
        "target_text": tokenizer.decode(ids[1:]),
        "tensors": {
            name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
            for name, t in tensors.items()
        },
    }


def show_window(console: Console, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A window's texts and ids, and x and y as tables where it has them."""
    show_pairs(
        console,
        f"window {record['window']}",
        {
            "start": record["start"],
            "documents": ", ".join(f"{d['index']} ({d['name']})" for d in record["documents"]),
            "input": record["input_text"],
            "target": record["target_text"],
            "padded_places": record["padded_places"],
            "input_ids": _shorten(record["input_ids"]),
            "target_ids": _shorten(record["target_ids"]),
        },
    )
    for name in ("x", "y"):
        if name in tensors:
            show_rows(console, name, tensors[name])


def show_rows(console: Console, name: str, rows: Tensor) -> None:
    """A matrix [T, d] as a table, its middle left out where it is long."""
    length, width = rows.shape
    table = Table(title=f"{name} [{length} rows x {width} columns]", title_justify="left", box=None)
    columns = _edges(width, EDGE_COLUMNS)
    table.add_column("")
    for column in columns:
        heading = "..." if column is None else str(column)
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _edges(length, EDGE_ROWS):
        if row is None:
            table.add_row(*["..."] * (len(columns) + 1))
        else:
            cells = ["..." if c is None else f"{float(rows[row, c]):.6f}" for c in columns]
            table.add_row(str(row), *cells)
    console.print(table)


def show_bench(console: Console, result: BenchResult, job: EndToEnd | None) -> None:
    """Times and ratios of the ways, what tables cost, and the stages of a whole job."""
    config, figures = result.config, result.figures
    table = Table(
        title=f"d {config.d_model}, T {config.context_length}, {config.dtype}, medians of "
        f"{config.rounds} rounds of {result.tokens:,} tokens, {result.distinct_tokens:,} distinct",
        title_justify="left",
        box=None,
    )
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


def _edges(length: int, edge: int) -> list[int | None]:
    """The indices to show of a long list; None stands for those left out."""
    if length <= 2 * edge + 1:
        return list(range(length))
    return [*range(edge), None, *range(length - edge, length)]


def _shorten(ids: list[int]) -> str:
    return " ".join("..." if i is None else str(ids[i]) for i in _edges(len(ids), 16))


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
