"""Makes a report: looks at an export once, part by part, and fills the page."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.manifest import Manifest, garbled_is_damaged
from exporters.reading import Export, open_export, open_stream
from jobs.choose_tokenizer import tokenizer_of_export
from jobs.inspection import window_record
from jobs.progress import Reporter
from jobs.report import attention, charts
from jobs.report.command import Made
from jobs.report.counts import Counts, count, thinned
from jobs.report.norms import Norms, embedding_norms, head_norms, quantiles
from jobs.report.page import render, write
from jobs.report.positions import Table, position_tables
from jobs.report.runfacts import run_facts
from jobs.report.texts import labels, pieces, token_text
from jobs.tokenizer import Tokenizer

SHOWN = 3  # windows, unless told
SAMPLE_TOKENS = 1 << 16  # of which lengths of q, k and v are taken, in whole windows
SAMPLE_WINDOWS = 32
TEXT_TOKENS = 4096  # that are shown as text, of all windows together
MOST_FILES = 10  # rows of a table of files
COMMON = 20  # tokens in the table of the most common ones

NO_QKV = "q and k were not exported (--export qkv), so there is nothing to make this from."


def make(
    root: Place, page: Path, windows: tuple[int, ...], tokenizer: str | None, reporter: Reporter
) -> Made:
    """As jobs.report.command.report, of an export that is there, to a page that may be written."""
    export = open_export(root)
    manifest = export.manifest
    with garbled_is_damaged(root):
        for index in windows:
            if index >= len(export):
                raise ExportError(
                    f"{root} has windows 0 to {len(export) - 1}; --window {index} is none of them"
                )
        decoder = tokenizer_of_export(root, manifest.tokenizer, tokenizer)
        stream = open_stream(root, manifest)
        with reporter.stage("tokens", stream.tokens, "tokens") as advance:
            counts = count(root, stream, advance)
        shown = tuple(dict.fromkeys(windows)) or spread(len(export), SHOWN)
        facts: dict[str, Any] = {
            "name": _name(root),
            "manifest": manifest,
            **_corpus(manifest, counts),
            **_tokens(manifest, counts, decoder),
            **run_facts(root, manifest),
        }
        specs = {
            "lengths": charts.lengths(counts),
            "coverage": charts.coverage(counts),
            "zipf": charts.zipf(counts, facts.pop("texts")),
        }
        if facts["stages"]:
            specs["stages"] = charts.stages([s for s in facts["stages"] if not s["within"]])
        facts |= _positions(root, manifest, specs)
        facts |= _windows(export, shown, decoder, specs, reporter)
        data = {"charts": specs, "attention": facts["attention"]}
        with reporter.stage("page", 1, "page") as advance:
            size = write(page, render(facts, data))
            advance(1)
    reasons = {
        "positions": "no_positions",
        "norms": "no_qkv",
        "attention": "no_qkv",
        "run": "no_run",
    }
    left_out = {section: facts[why] for section, why in reasons.items() if facts[why]}
    return Made(path=str(page), bytes=size, windows=shown, left_out=left_out)


def spread(count: int, most: int) -> tuple[int, ...]:
    """All of count things or `most` of them, from the first to the last."""
    return tuple(np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist())


def _name(root: Place) -> str:
    return str(root).rstrip("/").rpartition("/")[2] or str(root)


def _corpus(manifest: Manifest, counts: Counts) -> dict[str, Any]:
    """The files, the largest first, and what is not in any window."""
    files = sorted(manifest.corpus["files"], key=lambda file: -file["bytes"])
    corpus, windows = manifest.corpus, manifest.windows
    return {
        "files": files[:MOST_FILES],
        "file_count": len(files),
        "rest": files[MOST_FILES:],
        "counts": counts,
        "tail": [
            ("dropped tokens", windows["dropped_tokens"], "behind the last whole window"),
            ("short documents", windows["short_documents"], "too short for any window"),
            ("padded windows", windows["padded_windows"], "whose last places are filled up"),
            ("padded places", windows["padded_places"], "that hold no text; the mask is false"),
            ("bad records", corpus["bad_records"], "lines and rows without text, left out"),
            ("replaced sequences", corpus["replaced_sequences"], "of bytes that are no UTF-8"),
            ("skipped files", corpus["skipped_files"], "that were not read"),
        ],
    }


def _tokens(manifest: Manifest, counts: Counts, decoder: Tokenizer) -> dict[str, Any]:
    """The most common tokens, what they cover, and the texts that the chart of ranks needs."""
    total = int(counts.times.sum())
    ranks = thinned(len(counts.ids), charts.POINTS)
    shares = np.cumsum(counts.times) / total
    steps = [n for n in (10, 100, 1000, 10_000) if n < len(shares)]
    return {
        "texts": {int(i): token_text(decoder, int(i)) for i in counts.ids[ranks - 1]},
        "common": [
            {
                "id": int(number), "text": token_text(decoder, int(number)), "times": int(times),
                "share": times / total, "width": times / int(counts.times[0]),
            }
            for number, times in zip(counts.ids[:COMMON], counts.times, strict=False)
        ],
        "once": int((counts.times == 1).sum()),
        "covered": ", ".join(f"{n:,} make up {shares[n - 1]:.0%}" for n in steps),
    }  # fmt: skip


def _positions(root: Place, manifest: Manifest, specs: dict[str, Any]) -> dict[str, Any]:
    """The position tables; their charts are added to specs."""
    tables, why = position_tables(root, manifest)
    specs |= {f"positions-{table.name}": charts.positions(table) for table in tables}
    return {"tables": [(table, _caption(table)) for table in tables], "no_positions": why}


def _caption(table: Table) -> str:
    """What of a table its picture shows."""
    rows, columns = table.shape
    said = f"{table.name}, {rows:,} positions by {columns:,} columns"
    thinned = [
        f"one {name} in {step}"
        for step, name in ((table.row_step, "position"), (table.column_step, "column"))
        if step > 1
    ]
    if thinned:
        said += f", of which {' and '.join(thinned)} is drawn"
    if thinned and table.name != "learned":
        said += "; waves shorter than that look scrambled"
    return f"{said}."


def _windows(
    export: Export,
    shown: tuple[int, ...],
    decoder: Tokenizer,
    specs: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """The windows' texts, lengths of vectors and attention; their charts are added to specs."""
    manifest = export.manifest
    length = int(manifest.windows["context_length"])
    with_qkv = "qkv" in manifest.job["export"]
    most = min(max(SAMPLE_TOKENS // length, 1), SAMPLE_WINDOWS)
    sampled = spread(len(export), most) if with_qkv else ()
    extent = attention.extent(manifest, len(shown)) if with_qkv else None
    texts: dict[int, dict[str, Any]] = {}
    maps: dict[int, dict[str, Any]] = {}
    norms: list[dict[str, Norms]] = []
    wanted = sorted({*shown, *sampled})
    with reporter.stage("windows", len(wanted), "windows") as advance:
        for index in wanted:
            tensors = export[index]
            if index in sampled:
                norms.append(head_norms(manifest, tensors))
            if index in shown:
                texts[index] = _text(export, index, tensors, decoder, TEXT_TOKENS // len(shown))
                if extent is not None:
                    maps[index] = _map(manifest, index, tensors, extent, texts[index])
            advance(1)
    facts: dict[str, Any] = {
        "windows": [texts[index] for index in shown],
        "attention": None,
        "heads": None,
        "norm_windows": len(norms),
        "norm_tokens": sum(found["q"].shape[1] for found in norms),
        "no_qkv": None if with_qkv else NO_QKV,
        "embedding": embedding_norms(export.root, manifest) if manifest.layer else None,
        "notes": [],
    }
    if facts["embedding"] is not None:
        specs["embedding"] = charts.embedding(facts["embedding"])
    if extent is None:
        return facts
    heads = quantiles(norms)
    specs |= {f"norms-{name}": charts.heads(name, heads[name]) for name in "qkv"}
    family = (manifest.layer or {})["family"]
    keys = attention.key_heads(manifest, extent.heads)
    group = int((manifest.layer or {})["heads"]) // int((manifest.layer or {})["kv_heads"])
    return facts | {
        "heads": list(extent.heads),
        "notes": attention.notes(manifest),
        "places": extent.places,
        "scale": attention.scale(manifest),
        "causal": family not in attention.BOTH_WAYS,
        "attention": {
            "spec": charts.attention(),
            "windows": [maps[index] for index in shown],
            "heads": list(extent.heads),
            "keyHeads": [keys.index(head // group) for head in extent.heads],
            "grouped": group > 1,
            "group": group,
            "headDim": int((manifest.layer or {})["head_dim"]),
            "scale": attention.scale(manifest),
            "contextLength": length,
        },
    }


def _text(
    export: Export, index: int, tensors: Mapping[str, Tensor], decoder: Tokenizer, most: int
) -> dict[str, Any]:
    """A window for the page: where it begins, its documents, and its first tokens in pieces."""
    record = window_record(export.root, export.manifest, index, tensors, decoder)
    ids = record["input_ids"]
    real = ids[: len(ids) - record["padded_places"]]
    return {
        "index": index,
        "start": record["start"],
        "real": len(real),
        "padded": record["padded_places"],
        "documents": record["documents"],
        "left_out": max(0, len(real) - most),
        "pieces": pieces(decoder, real[:most]),
    }


def _map(
    manifest: Manifest,
    index: int,
    tensors: Mapping[str, Tensor],
    extent: attention.Extent,
    text: Mapping[str, Any],
) -> dict[str, Any]:
    """What the page computes the maps of a window from, as base64 of little-endian numbers."""
    scores = attention.scores(manifest, tensors, extent)
    places = scores.q.shape[1]
    return {
        "index": index,
        "places": places,
        "real": text["real"],
        "labels": labels(text["pieces"])[:places],
        "q": _base64(scores.q),
        "k": _base64(scores.k),
        "sums": _base64(scores.sums),
    }


def _base64(tensor: Tensor) -> str:
    array = tensor.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
