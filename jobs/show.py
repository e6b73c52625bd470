"""Tables for people: of a summary, a plan, an export, one of its windows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from exporters.folder import readable
from exporters.manifest import Manifest
from exporters.reading import Window, open_stream
from jobs.bench import BenchConfig, WayResult
from jobs.tokenizer import Tokenizer

EDGE_ROWS = 5  # rows and columns that are shown at each end of a long table
EDGE_COLUMNS = 3


def show_pairs(console: Console, title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; sizes in bytes become readable."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name.replace("_", " "), Text(_value(name, value)))
    console.print(table)


def show_export(console: Console, root: Path, manifest: Manifest) -> None:
    """What an export holds."""
    pairs: dict[str, Any] = {
        "documents": manifest.tokens["documents"],
        "corpus_bytes": manifest.corpus["bytes"],
        "skipped_files": manifest.corpus["skipped_files"],
        "replaced_sequences": manifest.corpus["replaced_sequences"],
        "tokenizer": manifest.tokenizer["name"],
        "tokens": manifest.tokens["count"],
        "windows": manifest.windows["count"],
        "context_length": manifest.windows["context_length"],
        "dropped_tokens": manifest.windows["dropped_tokens"],
    }
    if manifest.layer is not None:
        layer = manifest.layer
        pairs["layer"] = (
            f"{layer['source']}, V {layer['vocabulary_size']}, d {layer['d_model']}, "
            f"{layer['heads']} heads, {layer['kv_heads']} key/value heads of {layer['head_dim']}, "
            f"norm {layer['norm']}, positions {layer['positions']}, {layer['dtype']}"
        )
    if manifest.compute is not None:
        compute = manifest.compute
        pairs["computed"] = f"{compute['method']}, {compute['kernel']}: {compute['reason']}"
    show_pairs(console, str(root), pairs)

    table = Table(title="tensors of the shards", title_justify="left", box=None)
    for heading in ("name", "dtype", "shape, W windows"):
        table.add_column(heading)
    shards = manifest.of_kind("windows")
    for name, declared in shards[0].tensors.items():
        axes = _axes(name, manifest.job["layout"])
        lengths = zip(axes, declared["shape"][1:], strict=True)
        shape = ", ".join(["W", *(f"{axis} {length}" for axis, length in lengths)])
        table.add_row(name, declared["dtype"], Text(f"[{shape}]"))
    console.print(table)

    table = Table(title="files", title_justify="left", box=None)
    for heading in ("name", "size", "holds"):
        table.add_column(heading)
    for entry in manifest.files:
        last = entry.first + entry.count - 1
        holds = f"{entry.kind} {entry.first} to {last}" if entry.count else entry.kind
        table.add_row(entry.name, readable(entry.bytes), holds)
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
    root: Path, manifest: Manifest, window: Window, tokenizer: Tokenizer
) -> dict[str, Any]:
    """A window's ids and texts, read from the token stream, for people and for --json."""
    length = manifest.windows["context_length"]
    stream = open_stream(root, manifest)
    ids = stream.read(window.start, window.start + length + 1).tolist()
    documents = stream.documents(window.start, window.start + length).tolist()
    decode = tokenizer.encoding.decode
    return {
        "window": window.index,
        "start": window.start,
        "documents": [
            {"index": index, "name": manifest.corpus["files"][index]["name"]}
            for index in sorted(set(documents))
        ],
        "input_ids": ids[:-1],
        "target_ids": ids[1:],
        "input_text": decode(ids[:-1]),
        "target_text": decode(ids[1:]),
        "tensors": {
            name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
            for name, t in window.tensors.items()
        },
    }


def show_window(console: Console, record: Mapping[str, Any], window: Window) -> None:
    """A window's texts and ids, and x and y as tables where it has them."""
    show_pairs(
        console,
        f"window {record['window']}",
        {
            "start": record["start"],
            "documents": ", ".join(f"{d['index']} ({d['name']})" for d in record["documents"]),
            "input": record["input_text"],
            "target": record["target_text"],
            "input_ids": _shorten(record["input_ids"]),
            "target_ids": _shorten(record["target_ids"]),
        },
    )
    for name in ("x", "y"):
        if name in window.tensors:
            show_rows(console, name, window.tensors[name])


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


def show_bench(console: Console, config: BenchConfig, results: Sequence[WayResult]) -> None:
    """Times and ratios of the ways, each against the notebook's."""
    table = Table(
        title=f"d {config.d_model}, T {config.context_length}, {config.dtype}, medians of "
        f"{config.rounds} rounds of {config.windows * config.context_length:,} tokens",
        title_justify="left",
        box=None,
    )
    for heading in ("way", "", "tokens/s", "times the notebook's", "error"):
        table.add_column(heading, justify="left" if heading in ("way", "") else "right")
    for result in results:
        error = "" if result.error is None else f"{result.error:.1e}"
        ratio = f"{result.ratio_to_notebook:.2f}"
        speed = f"{result.tokens_per_second:,.0f}"
        table.add_row(result.name, result.what, speed, ratio, error)
    console.print(table)


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
    if isinstance(value, dict):
        return ", ".join(f"{key} {amount}" for key, amount in value.items())
    return f"{value:,}" if type(value) is int else str(value)
