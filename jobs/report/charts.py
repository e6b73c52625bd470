"""The charts of a report as Vega-Lite specifications, without colours: the page has those."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from jobs.report.counts import Counts, thinned
from jobs.report.norms import QUANTILES, EmbeddingNorms
from jobs.report.positions import Table

Spec = dict[str, Any]

POINTS = 300  # of a curve
HEIGHT = 240
CELL = 13  # pixels of a place of an attention map


def lengths(counts: Counts) -> Spec:
    """Documents by length, in bins that double."""
    used = np.flatnonzero(counts.lengths)
    bins = range(int(used[0]), int(used[-1]) + 1) if len(used) else range(1)
    rows = [{"length": _bin(b), "documents": int(counts.lengths[b])} for b in bins]
    most = max(bins, key=lambda b: int(counts.lengths[b]))
    chart = _chart().mark_bar().encode(
        x=alt.X("length:O", sort=None, title="tokens in a document",
                axis=alt.Axis(labelAngle=-40, labelOverlap=True)),
        y=alt.Y("documents:Q", title="documents", scale=alt.Scale(nice=5), axis=_whole()),
        tooltip=["length:O", _number("documents")],
    )  # fmt: skip
    said = f"Documents by length. Most, {counts.lengths[most]:,}, have {_bin(most)} tokens."
    return _spec(chart, rows, said)


def zipf(counts: Counts, texts: Mapping[int, str]) -> Spec:
    """How often tokens occur by their rank, both as logarithms.

    Args:
        texts: of the tokens of the ranks that `thinned` gives.
    """
    rows = [
        {
            "rank": int(rank), "occurrences": int(counts.times[rank - 1]),
            "token": texts[int(counts.ids[rank - 1])],
        }
        for rank in thinned(len(counts.ids), POINTS)
    ]  # fmt: skip
    chart = _chart().mark_line(point=alt.OverlayMarkDef(aria=False)).encode(
        x=alt.X("rank:Q", scale=alt.Scale(type="log"), title="rank", axis=_powers()),
        y=alt.Y("occurrences:Q", scale=alt.Scale(type="log"), title="occurrences", axis=_powers()),
        tooltip=["token:N", _number("rank"), _number("occurrences")],
    )  # fmt: skip
    said = (
        f"Occurrences of a token by its rank, both as logarithms, from "
        f"{rows[0]['occurrences']:,} at rank 1 to {rows[-1]['occurrences']:,} at rank "
        f"{rows[-1]['rank']:,}."
    )
    return _spec(chart, rows, said)


def coverage(counts: Counts) -> Spec:
    """The share of the text that the n most common tokens make up."""
    shares = np.cumsum(counts.times) / counts.times.sum()
    rows = [
        {"tokens": int(rank), "share": round(float(shares[rank - 1]), 5)}
        for rank in thinned(len(shares), POINTS)
    ]
    chart = _chart().mark_area(line=True, fillOpacity=0.15).encode(
        x=alt.X("tokens:Q", scale=alt.Scale(type="log"), title="most common tokens",
                axis=_powers()),
        y=alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), title="share of the text",
                axis=alt.Axis(format="%", tickCount=5)),
        tooltip=[_number("tokens"), alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    half = int(np.searchsorted(shares, 0.5)) + 1
    said = (
        f"Share of the text that the most common tokens make up: {half:,} of "
        f"{len(shares):,} make up half of it."
    )
    return _spec(chart, rows, said)


def positions(table: Table) -> Spec:
    """A position table as a heat map, positions downwards."""
    height = 7 * len(table.values) if len(table.values) > 32 else HEIGHT
    rows = [
        {"position": i * table.row_step, "column": j * table.column_step, "value": _short(value)}
        for i, row in enumerate(table.values.tolist())
        for j, value in enumerate(row)
    ]
    chart = _chart().mark_rect(aria=False).encode(
        x=alt.X("column:O", title="column", axis=_cells()),
        y=alt.Y("position:O", title="position", axis=_cells()),
        color=alt.Color("value:Q", scale=alt.Scale(domainMid=0, range="diverging"),
                        legend=alt.Legend(title=None, gradientLength=HEIGHT)),
        tooltip=["position:O", "column:O", alt.Tooltip("value:Q", format=".4")],
    )  # fmt: skip
    low, high = float(table.values.min()), float(table.values.max())
    said = (
        f"Heat map of the {table.name} table, {table.shape[0]:,} positions by "
        f"{table.shape[1]:,} columns, values from {low:.3g} to {high:.3g}."
    )
    return _spec(chart, rows, said, height)


def embedding(norms: EmbeddingNorms) -> Spec:
    """A histogram of the lengths of rows of the embedding."""
    rows = [
        {"from": _short(low), "to": _short(high), "rows": count}
        for low, high, count in zip(norms.edges, norms.edges[1:], norms.counts, strict=False)
    ]
    chart = _chart().mark_bar().encode(
        x=alt.X("from:Q", title="length of E[t]", scale=alt.Scale(zero=False, nice=False),
                bin=alt.BinParams(binned=True)),
        x2="to:Q",
        y=alt.Y("rows:Q", title="rows", scale=alt.Scale(nice=5), axis=_whole()),
        tooltip=["from:Q", "to:Q", _number("rows")],
    )  # fmt: skip
    said = (
        f"Histogram of the lengths of {norms.rows:,} rows of the embedding, their "
        f"median {norms.median:.3g}."
    )
    return _spec(chart, rows, said)


def heads(name: str, quantiles: NDArray[np.float64]) -> Spec:
    """Quantiles of the lengths of q, k or v, a head beside the other."""
    keys = [f"p{round(100 * q)}" for q in QUANTILES]
    rows = [
        {"head": head, **{key: _short(value) for key, value in zip(keys, row, strict=True)}}
        for head, row in enumerate(quantiles)
    ]
    low, first, middle, third, high = keys
    base = _chart().encode(
        x=alt.X("head:O", title="head", axis=_cells()),
        tooltip=["head:O", *[alt.Tooltip(f"{key}:Q", format=".4") for key in keys]],
    )
    length = alt.Scale(zero=False, nice=5)
    chart = alt.layer(
        base.mark_rule().encode(y=alt.Y(f"{low}:Q", title=f"length of {name}", scale=length),
                                y2=f"{high}:Q"),
        base.mark_bar(size=max(3, min(14, 240 // len(rows)))).encode(
            y=alt.Y(f"{first}:Q", scale=length), y2=f"{third}:Q"),
        base.mark_tick(thickness=2, size=max(3, min(14, 240 // len(rows))),
                       style="median").encode(y=alt.Y(f"{middle}:Q", scale=length)),
    )  # fmt: skip
    medians = quantiles[:, 2]
    said = (
        f"Lengths of {name} by head; medians from {medians.min():.3g} in head {medians.argmin()} "
        f"to {medians.max():.3g} in head {medians.argmax()}."
    )
    return _spec(chart, rows, said)


def attention() -> Spec:
    """An attention map without its data, which the page adds.

    That is cells (query, key, weight), labels of the tokens, and the ends of the scale.
    """
    axis: dict[str, Any] = {
        "labelExpr": "labels[datum.value]", "labelLimit": 70, "labelOverlap": False,
        "labelFontSize": 10, "ticks": False, "domain": False,
    }  # fmt: skip
    chart = (
        alt.Chart(alt.NamedData(name="cells"))
        .mark_rect(aria=False)
        .encode(
            x=alt.X("key:O", title="key", axis=alt.Axis(labelAngle=-90, orient="top", **axis)),
            y=alt.Y("query:O", title="query", axis=alt.Axis(**axis)),
            color=alt.Color("weight:Q", scale=alt.Scale(type="pow", exponent=0.33),
                            legend=alt.Legend(format=".2~p")),
            tooltip=["from:N", "to:N", "query:O", "key:O", alt.Tooltip("weight:Q", format=".4")],
        )
        .properties(width=alt.Step(CELL), height=alt.Step(CELL))
        .add_params(alt.param(name="labels", value=[]))
    )  # fmt: skip
    return dict(chart.to_dict())


def stages(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Seconds of the stages of a run."""
    values = [{"stage": row["name"], "seconds": _short(row["seconds"])} for row in rows]
    chart = _chart().mark_bar().encode(
        x=alt.X("seconds:Q", title="seconds"),
        y=alt.Y("stage:N", sort=None, title=None),
        tooltip=["stage:N", "seconds:Q"],
    )  # fmt: skip
    longest = max(values, key=lambda row: row["seconds"] or 0)
    said = f"Seconds by stage; the longest was {longest['stage']}."
    return _spec(chart, values, said, height=26 * len(values))


def _chart() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="rows"))


def _spec(chart: Any, rows: Sequence[Mapping[str, Any]], said: str, height: Any = HEIGHT) -> Spec:
    """A chart of rows, as wide as its place in the page, with what it shows in words."""
    spec = chart.properties(width="container", height=height, description=said).to_dict()
    return {**spec, "datasets": {"rows": list(rows)}}  # after Altair has looked at the rest


def _number(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", format=",")


def _whole() -> alt.Axis:
    return alt.Axis(format=",d", tickMinStep=1, tickCount=5)


def _powers() -> alt.Axis:
    """The axis of a scale of logarithms: labels at powers of ten only."""
    return alt.Axis(format="~s", values=[10**power for power in range(10)], grid=True)


def _cells() -> alt.Axis:
    """The axis of many cells, of whose labels those are left out that would touch."""
    return alt.Axis(labelAngle=0, labelOverlap=True, ticks=False, domain=False)


def _bin(bits: int) -> str:
    """The name of a bin of lengths."""
    if bits < 2:
        return str(bits)
    return f"{2 ** (bits - 1):,}\u2013{2**bits - 1:,}"


def _short(value: float) -> float | None:
    """A number in four digits; None where it is none."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
