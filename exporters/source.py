"""Computes windows: token stream -> ids -> x and y, q, k and v."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.tokens import TokenStream
from exporters.windows import WindowPlan, cut_windows, mask_of
from kernels.dispatch import Backend
from kernels.errors import LayerError
from kernels.packed import PackedLayer
from kernels.tables import Tables

INTEGERS = ("window_start", "mask", "input_ids", "target_ids", "document_ids")
"""Tensors of a window that are read and not computed."""

Read = Callable[[int, int, Collection[str]], dict[str, Tensor]]
"""Reads those INTEGERS of windows first to stop - 1 that are named."""


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """Everything that windows are computed from."""

    read: Read
    context_length: int
    layout: str  # "bhtd" or "bthd"
    backend: Backend | None  # None where nothing but ids is asked for
    layer: PackedLayer | None  # for x and y, and for q, k and v by method direct
    tables: Tables | None  # for q, k and v by method tables


def read_windows(
    plan: WindowPlan, stream: TokenStream, first: int, stop: int, names: Collection[str]
) -> dict[str, Tensor]:
    """Those INTEGERS of windows first to stop - 1 that are named, from the token stream.

    Raises:
        ExportError: if a window leaves the stream, or a file cannot be read.
    """
    starts, pairs = plan.places(first, stop)
    tensors = {"window_start": starts}
    if "mask" in names:
        tensors["mask"] = mask_of(pairs, plan.context_length)
    if not set(names) <= tensors.keys():
        windows = cut_windows(
            stream,
            starts,
            plan.context_length,
            documents="document_ids" in names,
            pairs=None if plan.padding is None else pairs,
            padding=plan.padding or 0,
        )
        tensors |= {"input_ids": windows.input_ids, "target_ids": windows.target_ids}
        if windows.document_ids is not None:
            tensors["document_ids"] = windows.document_ids
    return {name: tensors[name] for name in names}


def needed(names: Collection[str]) -> set[str]:
    """The INTEGERS that tensors of a window are, or are computed from."""
    found = set(names) & set(INTEGERS)
    if not found.issuperset(names):
        found |= {"input_ids", "target_ids"} if "y" in names else {"input_ids"}
    return found


def fill(source: WindowSource, first: int, stop: int, out: dict[str, Tensor]) -> None:
    """Write windows first to stop - 1 into tensors of any device, one row a window.

    `out` names any of the tensors of a window; q, k and v together unless they are `separate`.

    Raises:
        LayerError: if the tables or the embedding lack a token of the stream.
        ExportError: if a window leaves the stream, or a file cannot be read.
    """
    windows = source.read(first, stop, needed(out))
    for name in out.keys() & set(INTEGERS):
        out[name].copy_(windows[name])
    if source.backend is None or out.keys() <= set(INTEGERS):
        return
    backend, device = source.backend, source.backend.device

    def on_device(name: str) -> Tensor:
        """The output itself where it is on the device that computes, else a buffer to copy from."""
        same = out[name].device == device
        return out[name] if same else out[name].new_empty(out[name].shape, device=device)

    results = {name: on_device(name) for name in ("x", "y", "q", "k", "v") if name in out}
    if source.layer is not None:
        for name, ids in (("x", "input_ids"), ("y", "target_ids")):
            if ids in windows:
                _check_ids(source.layer, windows[ids])
            if name in results:
                backend.embed(source.layer, windows[ids].to(device), results[name])
    projected = {name: results[name] for name in ("q", "k", "v") if name in results}
    if source.layout == "bthd":
        projected = {name: tensor.transpose(1, 2) for name, tensor in projected.items()}
    if projected and source.tables is not None:
        rows = source.tables.rows(windows["input_ids"]).to(device)
        backend.combine(source.tables, rows, **projected)
    elif projected and source.layer is not None:
        backend.project(source.layer, windows["input_ids"].to(device), **projected)
    for name, result in results.items():
        if result is not out[name]:
            out[name].copy_(result)


def _check_ids(layer: PackedLayer, ids: Tensor) -> None:
    """Raise LayerError unless every id has a row: the kernels do not look."""
    rows = len(layer.embedding)
    least, most = torch.aminmax(ids)
    if int(least) < 0 or int(most) >= rows:
        wrong = int(least) if int(least) < 0 else int(most)
        raise LayerError(f"the embedding has {rows} rows, none of them for token {wrong}")


def separate(backend: Backend | None, method: str | None) -> bool:
    """Whether each tensor can be computed without the others for no more than all together."""
    return backend is None or (backend.device.type == "cpu" and method != "direct")
