"""The ways to q, k and v that the bench compares, each as a function that does it once."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.progress import Reporter
from kernels import reference
from kernels.dispatch import Backend
from kernels.layer import FirstLayer
from kernels.packed import PackedLayer
from kernels.tables import Tables, build


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way: what it is, and the function that goes it once."""

    what: str
    go: Callable[[], Any]
    kind: str = "torch"  # whose it is: "ours", "torch", or "part" of the work only
    outputs: tuple[Tensor, ...] = ()  # where it writes, unless it returns new memory


def make_ways(
    layer: FirstLayer, packed: PackedLayer, tables: Tables, backend: Backend, ids: Tensor,
    reporter: Reporter,
) -> dict[str, Way]:  # fmt: skip
    """Every way by name, for ids [W, T] on the device that computes, where `layer` is too."""
    device, dtype = backend.device, layer.dtype
    windows, length = ids.shape
    position = layer.position[:length] if layer.position is not None else None
    shape = (windows, layer.heads, length, layer.head_dim)
    weight = torch.cat([layer.q_weight, layer.k_weight, layer.v_weight])
    bias = torch.cat([b for b in (layer.q_bias, layer.k_bias, layer.v_bias) if b is not None])
    transposed = weight.t()
    rows = tables.rows(ids.cpu()).to(device)

    storage = torch.zeros(3, *shape, dtype=dtype, device=device)
    outputs = (storage[0], storage[1], storage[2])

    def embedded() -> Tensor:
        x = F.embedding(ids, layer.embedding)
        return x if position is None else x + position

    def notebook() -> tuple[Tensor, Tensor, Tensor]:
        x = embedded()
        return (
            F.linear(x, layer.q_weight, layer.q_bias),
            F.linear(x, layer.k_weight, layer.k_bias),
            F.linear(x, layer.v_weight, layer.v_bias),
        )

    def direct() -> tuple[Tensor, Tensor, Tensor]:
        backend.project(packed, ids, *outputs)
        return outputs

    def combine(built: Tables = tables) -> tuple[Tensor, Tensor, Tensor]:
        backend.combine(built, rows, *outputs)
        return outputs

    x = embedded().view(-1, layer.d_model)
    product = torch.empty(len(x), len(weight), dtype=dtype, device=device)
    copied = storage.view(product.shape)
    place = "into [W, H, T, Dh]"
    ways = {
        "notebook": Way(what="embedding, add, three Linear", go=notebook),
        "addmm": Way(
            what="gather, add, one addmm, packed",
            go=lambda: torch.addmm(bias, embedded().view(-1, layer.d_model), transposed),
        ),
    }
    if compiled := _compiled(layer, ids, device, reporter):
        ways["compile"] = compiled
    return ways | {
        "direct": Way(what=f"{backend.kernel}, {place}", go=direct, kind="ours", outputs=outputs),
        "tables": Way(
            what=f"{backend.combined_by(tables, dtype)[0]}, {place}, tables at hand",
            go=combine,
            kind="ours",
            outputs=outputs,
        ),
        "tables+build": Way(
            what="the same, tables built first",
            go=lambda: combine(build(layer, tables.token_ids, device)),
            kind="ours",
            outputs=outputs,
        ),
        "multiply": Way(
            what="the matrix product alone",
            go=lambda: torch.mm(x, transposed, out=product),
            kind="part",
        ),
        "copy": Way(
            what="as many bytes as q, k, v, copied", go=lambda: copied.copy_(product), kind="part"
        ),
    }


def _compiled(
    layer: FirstLayer, ids: Tensor, device: torch.device, reporter: Reporter
) -> Way | None:
    """torch.compile of the definition; None, said aloud, where nothing here can compile it."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        reporter.note("compile is left out: there is no C++ compiler")
        return None
    mode = "max-autotune" if device.type == "cuda" else None
    way = torch.compile(lambda: reference.project(layer, ids), mode=mode)
    try:
        way()
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line]
        reporter.note(f"compile is left out: {(lines or str(error).splitlines())[0].strip()}")
        return None
    return Way(what=f"torch.compile, {mode or 'default'} mode", go=way)
