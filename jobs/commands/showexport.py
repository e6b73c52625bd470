"""What `inspect` shows: an export, one of its windows, and what its values are like."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text
from torch import Tensor

from exporters.bucket import Place
from exporters.contents import exported_tensors
from exporters.manifest import Manifest, garbled_is_damaged, read_manifest
from exporters.reading import Export, open_export
from exporters.space import readable
from jobs.choose_tokenizer import tokenizer_of_export
from jobs.commands.results import print_json, stdout
from jobs.commands.show import folded, show_pairs, show_title
from jobs.errors import TokenizerError
from jobs.inspection import Question, Rows, open_window, rows_of, stats_of, window_record
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer

EDGE_ROWS = 5  # rows and columns that are shown at each end of a long table
EDGE_COLUMNS = 3
WIDEST = 1 << 10  # columns of a terminal, in which any line of statistics fits
MOMENTS = ("min", "max", "mean", "std")
SHARES = {"zeros": "zeros", "nan": "NaN", "infinite": "infinite"}  # and their headings


def show(export: Place, question: Question, *, as_json: bool) -> None:
    """Answer what `inspect` is asked, on standard output.

    Raises:
        ConfigError: if options do not fit the export.
        ExportError: if it, or what is asked for, is not there or cannot be read.
        TokenizerError: if the tokenizer that is given cannot be used, or is another.
    """
    manifest = read_manifest(export)
    with garbled_is_damaged(export):
        if question.stats:
            _show_stats(export, question, as_json)
        elif question.window is not None:
            _show_window(export, question, as_json)
        elif as_json:
            print_json(asdict(manifest))
        else:
            show_export(stdout(), export, manifest)


def _show_window(export: Place, question: Question, as_json: bool) -> None:
    windows = open_export(export)
    index = question.window or 0
    tensors = open_window(windows, index)
    rows = rows_of(windows, tensors, question)
    tokenizer = _tokenizer(export, windows.manifest, question.tokenizer)
    record = window_record(export, windows.manifest, index, tensors, tokenizer)
    if as_json:
        print_json({**record, "rows": {name: asdict(shown) for name, shown in rows.items()}})
    else:
        show_window(stdout(), record, rows, question.head)


def _has_padding(windows: Export, index: int | None) -> bool:
    """Whether places of a window, or of any, are filled up."""
    if not windows.manifest.padded:
        return False
    if index is None:
        return bool(windows.manifest.windows["padded_places"])
    mask = windows[index].get("mask")
    return mask is not None and not bool(mask.all())


def _tokenizer(export: Place, manifest: Manifest, given: str | None) -> Tokenizer | None:
    """What shows ids as text; without one that was asked for, a line says why there is none."""
    try:
        return tokenizer_of_export(export, manifest.tokenizer, given)
    except TokenizerError as error:
        if given is not None:
            raise
        Reporter().note(f"texts are not shown: {error}")
        return None


def _show_stats(export: Place, question: Question, as_json: bool) -> None:
    windows = open_export(export)
    stats = stats_of(windows, question, Reporter(quiet=as_json))
    if as_json:
        print_json({"window": question.window, "tensors": stats})
    else:
        of = "all windows" if question.window is None else f"window {question.window}"
        padded = _has_padding(windows, question.window)
        show_stats(stdout(), f"{export}, {of}", stats, padded=padded)


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
    show_pairs(console, str(root), folded(pairs))

    show_title(
        console,
        "tensors of the windows, from the tables" if manifest.compact else "tensors of the shards",
    )
    table = Table(box=None)
    for heading in ("name", "dtype", "shape, W windows"):
        table.add_column(heading, overflow="fold")
    for name, plan in exported_tensors(manifest).items():
        lengths = zip(_axes(name, manifest.job["layout"]), plan.shape, strict=True)
        shape = ", ".join(["W", *(f"{axis} {length}" for axis, length in lengths)])
        table.add_row(name, str(plan.dtype).removeprefix("torch."), Text(f"[{shape}]"))
    console.print(table)

    count = len(manifest.files)
    shown = _edges(count, EDGE_ROWS)
    some = f", the first and last {EDGE_ROWS}" if None in shown else ""
    show_title(console, f"files: {count:,}{some}")
    table = Table(box=None)
    for heading in ("name", "size", "holds"):
        table.add_column(heading, overflow="fold")
    for index in shown:
        if index is None:
            table.add_row(*["..."] * 3)
            continue
        entry = manifest.files[index]
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


def show_window(
    console: Console, record: Mapping[str, Any], rows: Mapping[str, Rows], head: int | None
) -> None:
    """A window's texts and ids, and values of it as tables; of q, k and v those of a query head."""
    show_pairs(
        console,
        f"window {record['window']}",
        {
            "start": record["start"],
            "documents": ", ".join(f"{d['index']} ({d['name']})" for d in record["documents"]),
            "input": _text(record["input_text"]),
            "target": _text(record["target_text"]),
            "padded_places": record["padded_places"],
            "input_ids": _shorten(record["input_ids"]),
            "target_ids": _shorten(record["target_ids"]),
        },
    )
    for name, shown in rows.items():
        if shown.values.dim() == 2:
            show_rows(console, _title(name, shown, head), shown.values)
        else:
            values = shown.values.reshape(-1).tolist()
            show_pairs(console, f"{name} {list(shown.values.shape)}", {"values": _shorten(values)})


def _text(text: str | None) -> str:
    return "not shown, without the tokenizer" if text is None else text


def _title(name: str, rows: Rows, head: int | None) -> str:
    """What a table of rows is of."""
    if rows.head is None:
        return name
    if name == "q":
        return f"q, query head {rows.head} of {rows.heads},"
    return f"{name}, key/value head {rows.head} of {rows.heads}, which query head {head} uses,"


def show_rows(console: Console, title: str, rows: Tensor) -> None:
    """A matrix [T, d] as a table, its middle left out where it is long or wide."""
    show_title(console, f"{title} [{rows.shape[0]} rows x {rows.shape[1]} columns]")
    for edge in range(EDGE_COLUMNS, 0, -1):
        table = _rows_table(rows, edge)
        if _width(console, table) <= console.width:
            break
    _print_whole(console, table)


def _rows_table(rows: Tensor, edge: int) -> Table:
    """A matrix with so many columns at each end."""
    length, width = rows.shape
    table = Table(box=None)
    columns = _edges(width, edge)
    table.add_column("", no_wrap=True)
    for column in columns:
        heading = "..." if column is None else str(column)
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _edges(length, EDGE_ROWS):
        if row is None:
            table.add_row(*["..."] * (len(columns) + 1))
        else:
            cells = ["..." if c is None else _decimal(float(rows[row, c])) for c in columns]
            table.add_row(str(row), *cells)
    return table


def show_stats(
    console: Console, title: str, stats: Mapping[str, Mapping[str, Any]], *, padded: bool
) -> None:
    """What the values of tensors are like: a line for each, or a block where lines are too long.

    Args:
        padded: whether there are padded places, which count too.
    """
    show_title(console, title)
    table = Table(box=None)
    for heading in ("tensor", "dtype", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in (*MOMENTS, *SHARES.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    lines = {name: _line(found) for name, found in stats.items()}
    for name, line in lines.items():
        table.add_row(name, *map(Text, line.values()))
    if _width(console, table) <= console.width:
        console.print(table)
    else:
        for name, line in lines.items():
            show_title(console, name)
            block = Table(show_header=False, box=None)
            block.add_column(style="bold", no_wrap=True)
            block.add_column(no_wrap=True)
            for heading, value in line.items():
                block.add_row(heading, Text(value))
            _print_whole(console, block)
    console.print(
        "min, max, mean and std, that of the population, are of the finite values"
        + ("; padded places count too" if padded else ""),
        soft_wrap=True,
    )


def _width(console: Console, table: Table) -> int:
    """The columns of a terminal that a table takes whose own columns do not wrap."""
    return console.measure(table, options=console.options.update(max_width=WIDEST)).maximum


def _print_whole(console: Console, table: Table) -> None:
    """Print a table whose columns do not wrap; where it is too wide, the terminal breaks lines."""
    options = console.options.update_width(max(console.width, _width(console, table)))
    lines = console.render_lines(table, options, pad=False)
    console.print(SegmentLines(lines, new_lines=True), crop=False, end="")


def _line(found: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a tensor, by heading."""
    line = {"dtype": found["dtype"], "shape": str(found["shape"])}
    line |= {name: _number(found[name]) for name in MOMENTS}
    return line | {heading: _share(found[key], found["values"]) for key, heading in SHARES.items()}


def _decimal(value: float) -> str:
    """Six decimals where they say something of a value, else five digits and a power of ten."""
    plain = value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e3
    return f"{value:.6f}" if plain else f"{value:.4e}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _share(count: int, values: int) -> str:
    """A share that is shown as nothing only where it is nothing, and as all only where it is."""
    if count in (0, values):
        return f"{count / max(1, values):.0%}"
    return f"{min(max(count / values, 1e-5), 1 - 1e-5):.3%}"


def _edges(length: int, edge: int) -> list[int | None]:
    """The indices to show of a long list; None stands for those left out."""
    if length <= 2 * edge + 1:
        return list(range(length))
    return [*range(edge), None, *range(length - edge, length)]


def _shorten(values: Sequence[Any]) -> str:
    return " ".join("..." if i is None else str(values[i]) for i in _edges(len(values), 16))
