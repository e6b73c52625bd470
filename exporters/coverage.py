"""Whether the windows of an export lie where its documents and its options put them."""

from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from exporters.bucket import Place
from exporters.manifest import MANIFEST, FileEntry, Manifest
from exporters.safefile import Header, open_regular, own_file, read_header
from exporters.spans import (
    Places,
    Spans,
    WindowRule,
    count_windows,
    covered,
    document_spans,
    draw,
    find_windows,
    list_windows,
    whole_stream,
)
from exporters.windows import mask_of

MASK_PLACES = 1 << 22  # of masks, compared at once


def rule_of(manifest: Manifest) -> WindowRule:
    """How the windows of an export were cut."""
    windows, job = manifest.windows, manifest.job
    drawn = windows["stride"] is None
    return WindowRule(
        context_length=windows["context_length"],
        stride=1 if drawn else windows["stride"],
        split=manifest.split,
        pad=manifest.padded,
        most=None if drawn or job["batches"] is None else job["batches"] * job["batch_size"],
    )


def find(manifest: Manifest, spans: Callable[[], Iterator[Spans]], index: Tensor) -> Places:
    """Where the windows of these numbers lie, int64 [W]; random ones are drawn again.

    Args:
        spans: the spans of the token stream, from the first on.

    Raises:
        ValueError: if the manifest has no such windows.
    """
    rule, job = rule_of(manifest), manifest.job
    if manifest.windows["stride"] is None:
        high, size = count_windows(spans(), rule).windows, job["batch_size"]
        try:
            drawn = draw(high, size, -(-manifest.windows["count"] // size), job["seed"])
        except RuntimeError as error:
            raise ValueError(f"job: seed {job['seed']!r}, batch_size {size!r}") from error
        index = drawn[index]
    return find_windows(spans(), rule, index)


def misplaced_windows(root: Place, manifest: Manifest) -> list[str]:
    """What of starts, masks and counts is not as the documents give it, with the file's name.

    In plain reads, of files whose hashes and headers are right. Windows that follow one another by
    a stride alone, all of them whole, have nothing to compare.

    Raises:
        OSError: if a file cannot be read.
    """
    if not (manifest.split or manifest.padded):
        return []
    entries = [*manifest.of_kind("starts"), *manifest.of_kind("windows")]
    headers = {
        entry.name: read_header(own_file(root, entry.name))
        for entry in (*manifest.of_kind("tokens"), *entries)
    }

    def spans() -> Iterator[Spans]:
        tokens = manifest.tokens["count"]
        if not manifest.split:
            return whole_stream(tokens)
        parts = (
            _rows(root, entry, headers[entry.name], "document_starts")
            for entry in manifest.of_kind("tokens")
        )
        return document_spans(parts, tokens)

    if problems := _miscounted(manifest, spans):
        return problems
    found: dict[tuple[str, str], str] = {}
    at = 0
    for places in _expected(manifest, spans):
        stop = at + len(places.start)
        for entry in entries:
            low, high = max(at, entry.first), min(stop, entry.first + entry.count)
            if low < high:
                own = Places(places.start[low - at : high - at], places.pairs[low - at : high - at])
                for name in _different(root, entry, headers[entry.name], low, own, manifest):
                    found.setdefault(
                        (entry.name, name),
                        f"{entry.name}: {name} of windows {low} to {high - 1} is not what the "
                        "documents give",
                    )
        at = stop
    return list(found.values())


def _expected(manifest: Manifest, spans: Callable[[], Iterator[Spans]]) -> Iterator[Places]:
    """Where all windows lie, in order."""
    if manifest.windows["stride"] is not None:
        return list_windows(spans(), rule_of(manifest))
    return iter([find(manifest, spans, torch.arange(manifest.windows["count"]))])


def _miscounted(manifest: Manifest, spans: Callable[[], Iterator[Spans]]) -> list[str]:
    """Which counts of windows in the manifest do not follow from its spans and options."""
    counts = count_windows(spans(), rule_of(manifest))
    windows, tokens = manifest.windows, manifest.tokens
    short = tokens["documents"] - counts.fruitful_spans if manifest.split else 0
    expected = {"short_documents": short}
    if windows["stride"] is None:
        starts = find(manifest, spans, torch.arange(windows["count"])).start
        held = covered(starts, windows["context_length"] + 1)
        expected |= {"padded_windows": 0, "padded_places": 0}
    else:
        held = counts.held_tokens
        expected |= {
            "count": counts.windows,
            "padded_windows": counts.padded_windows,
            "padded_places": counts.padded_places,
        }
    expected["dropped_tokens"] = tokens["count"] - held
    return [
        f"{MANIFEST}: windows.{name} is {windows[name]}, but the documents give {value}"
        for name, value in expected.items()
        if windows[name] != value
    ]


def _different(
    root: Place, entry: FileEntry, header: Header, first: int, places: Places, manifest: Manifest
) -> list[str]:
    """Which tensors of a file are others from window `first` of the export on."""
    length = manifest.windows["context_length"]
    step = max(1, MASK_PLACES // length)
    names = []
    for name in sorted({"window_start", "window_pairs", "mask"} & entry.tensors.keys()):
        for at in range(0, len(places.start), step):
            start, pairs = places.start[at : at + step], places.pairs[at : at + step]
            row = first - entry.first + at
            found = _rows(root, entry, header, name, row, row + len(start))
            expected = {"window_start": start, "window_pairs": pairs.to(torch.int32)}.get(name)
            if not torch.equal(found, mask_of(pairs, length) if expected is None else expected):
                names.append(name)
                break
    return names


def _rows(
    root: Place,
    entry: FileEntry,
    header: Header,
    name: str,
    first: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Rows [first, stop) of a tensor of integers or bools, or all of them, in a plain read."""
    declared = entry.tensors[name]
    count, *rest = declared["shape"]
    stop = count if stop is None else stop
    dtype = np.dtype(declared["dtype"])
    row = prod(rest) * dtype.itemsize
    with open_regular(own_file(root, entry.name)) as file:
        file.seek(header.tensors[name].first_byte + first * row)
        data = bytearray(file.read((stop - first) * row))
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(stop - first, *rest))
