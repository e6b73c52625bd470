"""Computes windows: token stream -> ids -> x and y, q, k and v."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.tokens import TokenStream
from exporters.windows import WindowPlan, cut_windows, mask_of
from kernels.dispatch import Backend
from kernels.errors import LayerError
from kernels.packed import PackedLayer
from kernels.tables import Tables


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """Everything that windows are computed from."""

    windows: WindowPlan
    stream: TokenStream
    layout: str  # "bhtd" or "bthd"
    backend: Backend | None  # None where nothing but ids is asked for
    layer: PackedLayer | None  # for x and y, and for q, k and v by method direct
    tables: Tables | None  # for q, k and v by method tables


def fill(source: WindowSource, first: int, stop: int, out: dict[str, Tensor]) -> None:
    """Write windows first to stop - 1 into tensors of any device, one row a window.

    `out` names any of the tensors of a window; q, k and v together unless they are `separate`.

    Raises:
        LayerError: if the tables or the embedding lack a token of the stream.
        ExportError: if a window leaves the stream, or a file cannot be read.
    """
    plan = source.windows
    starts, pairs = plan.places(first, stop)
    if "window_start" in out:
        out["window_start"].copy_(starts)
    if "mask" in out:
        out["mask"].copy_(mask_of(pairs, plan.context_length))
    if out.keys() <= {"window_start", "mask"}:
        return
    windows = cut_windows(
        source.stream,
        starts,
        plan.context_length,
        documents="document_ids" in out,
        pairs=None if plan.padding is None else pairs,
        padding=plan.padding or 0,
    )
    for name in ("input_ids", "target_ids", "document_ids"):
        if name in out:
            out[name].copy_(getattr(windows, name))
    if source.backend is None:
        return
    backend, device = source.backend, source.backend.device

    def on_device(name: str) -> Tensor:
        """The output itself where it is on the device that computes, else a buffer to copy from."""
        same = out[name].device == device
        return out[name] if same else out[name].new_empty(out[name].shape, device=device)

    results = {name: on_device(name) for name in ("x", "y", "q", "k", "v") if name in out}
    if source.layer is not None:
        _check_ids(source.layer, windows.input_ids, windows.target_ids)
        for name, ids in (("x", windows.input_ids), ("y", windows.target_ids)):
            if name in results:
                backend.embed(source.layer, ids.to(device), results[name])
    projected = {name: results[name] for name in ("q", "k", "v") if name in results}
    if source.layout == "bthd":
        projected = {name: tensor.transpose(1, 2) for name, tensor in projected.items()}
    if projected and source.tables is not None:
        rows = source.tables.rows(windows.input_ids).to(device)
        backend.combine(source.tables, rows, **projected)
    elif projected and source.layer is not None:
        backend.project(source.layer, windows.input_ids.to(device), **projected)
    for name, result in results.items():
        if result is not out[name]:
            out[name].copy_(result)


def _check_ids(layer: PackedLayer, *ids: Tensor) -> None:
    """Raise LayerError unless every id has a row: the kernels do not look."""
    rows = len(layer.embedding)
    for least, most in (torch.aminmax(part) for part in ids):
        if int(least) < 0 or int(most) >= rows:
            wrong = int(least) if int(least) < 0 else int(most)
            raise LayerError(f"the embedding has {rows} rows, none of them for token {wrong}")


def separate(backend: Backend | None, method: str | None) -> bool:
    """Whether each tensor can be computed without the others for no more than all together."""
    return backend is None or (backend.device.type == "cpu" and method != "direct")
