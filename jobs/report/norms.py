"""Lengths of vectors: of rows of the embedding, and of q, k and v by head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from exporters.bucket import Place
from exporters.manifest import Manifest
from exporters.safefile import own_file
from exporters.strays import WEIGHTS
from jobs.report.rows import read_rows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EMBEDDING_ROWS = 4096  # of which lengths are taken, in stretches spread over the vocabulary
STRETCHES = 16
BINS = 40

Norms = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EmbeddingNorms:
    """A histogram of the lengths of some rows of the embedding."""

    rows: int
    vocabulary_size: int
    edges: list[float]  # [BINS + 1]
    counts: list[int]  # [BINS]
    median: float


def head_norms(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, Norms]:
    """The lengths of q, k and v of a window by head, float32 [heads, places], filled ones left out.

    Args:
        tensors: the window as an Export gives it.
    """
    found = {}
    for name in "qkv":
        norms = tensors[name].float().norm(dim=-1)
        norms = norms if manifest.job["layout"] == "bhtd" else norms.T
        found[name] = (norms[:, tensors["mask"]] if "mask" in tensors else norms).numpy()
    return found


def quantiles(windows: Sequence[Mapping[str, Norms]]) -> dict[str, NDArray[np.float64]]:
    """QUANTILES of each head of q, k and v over windows, [heads, 5]."""
    found = {}
    with np.errstate(invalid="ignore"):  # of values beyond float16's range, which are infinite
        for name in "qkv":
            lengths = np.concatenate([norms[name] for norms in windows], 1)
            found[name] = np.quantile(lengths, QUANTILES, axis=1).T
    return found


def embedding_norms(root: Place, manifest: Manifest) -> EmbeddingNorms | None:
    """The lengths of rows of the stored embedding; None where no layer is stored.

    Raises:
        ExportError, KeyError, OSError: if they cannot be read.
    """
    if not manifest.of_kind("weights"):
        return None
    size = int((manifest.layer or {})["vocabulary_size"])
    rows = read_rows(own_file(root, WEIGHTS), "embedding.weight", _stretches(size))
    norms = rows.float().norm(dim=1).numpy()
    norms = norms[np.isfinite(norms)]
    counts, edges = np.histogram(norms, BINS)
    return EmbeddingNorms(
        rows=len(norms),
        vocabulary_size=size,
        edges=edges.tolist(),
        counts=counts.tolist(),
        median=float(np.median(norms)),
    )


def _stretches(size: int) -> list[tuple[int, int]]:
    """All rows, or EMBEDDING_ROWS of them in STRETCHES stretches."""
    if size <= EMBEDDING_ROWS:
        return [(0, size)]
    length = EMBEDDING_ROWS // STRETCHES
    starts = np.linspace(0, size - length, STRETCHES).astype(int).tolist()
    return [(start, start + length) for start in starts]
