"""What the page computes attention maps from: q, k and log-sum-exps of the windows shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.manifest import Manifest

BUDGET = 2_400_000  # bytes of q, k and sums in the page, before base64 makes 4 of 3
PLACES = (64, 48, 32, 24)  # of a window, the most first; each place is a row and a column

NOTES = {
    "bert": "The attention of bert looks both ways.",
    "distilbert": "The attention of distilbert looks both ways.",
    "roberta": "The attention of roberta looks both ways.",
    "gemma2": "The model caps its scores before the softmax, which this map does not.",
}
"""By family: what its own attention does that is not softmax(scale q k) with a causal mask."""
BOTH_WAYS = frozenset({"bert", "distilbert", "roberta"})


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Which heads the page holds and how many places of each window, so that it stays small."""

    heads: tuple[int, ...]  # query heads
    places: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A window's part of what maps are computed from, for P places and the heads of an Extent.

    q       float32 [heads, P, Dh]
    k       float32 [key heads, P, Dh]
    sums    float64 [heads, P]: the logarithm of a row's sum of exp(scale q k) over every key of
            the window, also those beyond P, but none that is filled up
    """

    q: Tensor
    k: Tensor
    sums: Tensor


def extent(manifest: Manifest, windows: int) -> Extent:
    """As many places of so many windows as fit the page with all heads; else fewer heads too."""
    layer, length = manifest.layer or {}, int(manifest.windows["context_length"])
    heads = int(layer["heads"])
    for places in PLACES:
        fitting = min(places, length)
        if windows * fitting * _a_place(manifest, range(heads)) <= BUDGET:
            return Extent(heads=tuple(range(heads)), places=fitting)
    places = min(PLACES[-1], length)
    for step in range(2, heads + 1):
        kept = tuple(range(0, heads, step))
        if windows * places * _a_place(manifest, kept) <= BUDGET:
            return Extent(heads=kept, places=places)
    places = BUDGET // (windows * _a_place(manifest, (0,)))
    return Extent(heads=(0,), places=max(1, min(places, length)))


def key_heads(manifest: Manifest, heads: Sequence[int]) -> list[int]:
    """The key heads that query heads use, ascending: h uses h // (H / Hk)."""
    layer = manifest.layer or {}
    group = int(layer["heads"]) // int(layer["kv_heads"])
    return sorted({head // group for head in heads})


def scale(manifest: Manifest) -> float:
    """By what scores are multiplied before the softmax."""
    layer = manifest.layer or {}
    stored = layer["attention_scale"]
    return float(layer["head_dim"] ** -0.5 if stored is None else stored)


def scores(manifest: Manifest, tensors: Mapping[str, Tensor], shown: Extent) -> Scores:
    """What the maps of a window are computed from.

    Args:
        tensors: the window as an Export gives it, with q and k.
    """
    q, k = (_by_head(tensors[name], manifest) for name in "qk")
    real = int(tensors["mask"].sum()) if "mask" in tensors else q.shape[1]
    places = min(shown.places, real)
    group = len(q) // len(k)
    factor = scale(manifest)
    sums = [
        torch.logsumexp(q[h, :places].double() @ k[h // group, :real].double().T * factor, 1)
        for h in shown.heads
    ]
    return Scores(
        q=q[list(shown.heads), :places].float(),
        k=k[key_heads(manifest, shown.heads), :places].float(),
        sums=torch.stack(sums),
    )


def notes(manifest: Manifest) -> list[str]:
    """Sentences about where the maps are not those of the model's own first attention."""
    layer = manifest.layer or {}
    found = []
    if layer["family"] in NOTES:
        found.append(NOTES[layer["family"]])
    if manifest.job.get("pre_rope"):
        found.append(
            "q and k were exported before they turn by rotary positions (--pre-rope), so the maps "
            "know nothing of positions."
        )
    return found


def _by_head(tensor: Tensor, manifest: Manifest) -> Tensor:
    """q or k of a window as [heads, T, Dh]."""
    return tensor if manifest.job["layout"] == "bhtd" else tensor.transpose(0, 1)


def _a_place(manifest: Manifest, heads: Sequence[int]) -> int:
    """Bytes in the page for a place of a window."""
    width = int((manifest.layer or {})["head_dim"])
    return 4 * width * (len(heads) + len(key_heads(manifest, heads))) + 8 * len(heads)
