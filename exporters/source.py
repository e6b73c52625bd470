"""Computes windows: token stream -> ids -> x and y, q, k and v."""

from dataclasses import dataclass

from torch import Tensor

from exporters.tokens import TokenStream
from exporters.windows import WindowPlan, cut_windows
from kernels.dispatch import Backend
from kernels.layer import PackedLayer
from kernels.tables import Tables

STEP_TOKENS = 1 << 14  # tokens that are cut, computed and copied at once


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

    Raises:
        LayerError: if the tables lack a token of the stream.
    """
    starts = source.windows.starts(first, stop)
    windows = cut_windows(source.stream, starts, source.windows.context_length)
    for name in ("window_start", "input_ids", "target_ids", "document_ids"):
        if name in out:
            out[name].copy_(getattr(windows, name))
    if source.backend is None:
        return
    backend, device = source.backend, source.backend.device

    def on_device(name: str) -> Tensor:
        """The output itself where it is on the device that computes, else a buffer to copy from."""
        same = out[name].device.type == device.type
        return out[name] if same else out[name].new_empty(out[name].shape, device=device)

    results: dict[str, Tensor] = {}
    if "x" in out and source.layer is not None:
        results |= {"x": on_device("x"), "y": on_device("y")}
        backend.embed(source.layer, windows.input_ids.to(device), results["x"])
        backend.embed(source.layer, windows.target_ids.to(device), results["y"])
    if "q" in out:
        results |= {name: on_device(name) for name in ("q", "k", "v")}
        swap = source.layout == "bthd"
        by_head = [results[name].transpose(1, 2) if swap else results[name] for name in "qkv"]
        if source.tables is not None:
            backend.combine(
                source.tables, source.tables.rows(windows.input_ids).to(device), *by_head
            )
        elif source.layer is not None:
            backend.project(source.layer, windows.input_ids.to(device), *by_head)
    for name, result in results.items():
        if result is not out[name]:
            out[name].copy_(result)


def steps(first: int, stop: int, context_length: int) -> list[tuple[int, int]]:
    """Cut windows [first, stop) into steps of about STEP_TOKENS tokens."""
    step = max(1, STEP_TOKENS // context_length)
    return [(at, min(at + step, stop)) for at in range(first, stop, step)]
