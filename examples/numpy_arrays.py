"""The windows of a shard as numpy arrays, and attention over the first, without torch:

    qkvmill run CORPUS --out OUT
    python examples/numpy_arrays.py OUT

jax.numpy.asarray takes each of these arrays; so does safetensors.flax.load_file, at once. bfloat16
needs the package ml_dtypes, which comes with JAX.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Arrays = dict[str, NDArray]


def load_shard(export: Path) -> tuple[Arrays, float | None]:
    """The first shard of a full export, q, k, v as [W, heads, T, Dh], and its attention's scale."""
    try:
        manifest = json.loads((export / "manifest.json").read_text("utf-8"))
        if manifest["format_version"] != 1:
            sys.exit(f"{export} has format version {manifest['format_version']}; 1 is known here")
        job = manifest["job"]
        if job["artifact"] != "full" or "qkv" not in job["export"]:
            sys.exit(f"{export} has no shards of q, k, v; expand it, or run with --export qkv")
        if job["dtype"] == "bfloat16":
            if find_spec("ml_dtypes") is None:
                sys.exit(f"{export} is bfloat16, which numpy knows by the package ml_dtypes only")
            import ml_dtypes  # noqa: F401  # tells numpy of it
        shards = [file["name"] for file in manifest["files"] if file["kind"] == "windows"]
        shard = load_file(export / shards[0])
    except Exception as error:  # whatever a damaged file leads to
        sys.exit(f"{export} is not a whole export: {type(error).__name__}: {error}")
    if job["layout"] == "bthd":
        shard |= {name: shard[name].swapaxes(1, 2) for name in "qkv"}
    return shard, manifest["layer"]["attention_scale"]


def attend(q: NDArray, k: NDArray, v: NDArray, scale: float | None = None) -> NDArray:
    """Causal attention of one window: q [H, T, Dh], k and v [Hk, T, Dh] -> float32 [H, T, Dh]."""
    q, k, v = (array.astype(np.float32) for array in (q, k, v))
    k, v = (array.repeat(len(q) // len(k), axis=0) for array in (k, v))
    scores = q @ k.swapaxes(1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
    scores[:, ~np.tri(q.shape[1], dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True) @ v


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    shard, scale = load_shard(Path(sys.argv[1]))
    for name, array in shard.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")
    out = attend(*(shard[name][0] for name in "qkv"), scale)
    print(f"attention over the first window: {list(out.shape)}, mean square {np.mean(out**2):.6g}")
