"""q, k and v of a compact export by hand, with nothing but safetensors and torch:

    qkvmill run CORPUS --out COMPACT --artifact compact
    qkvmill expand COMPACT --out FULL
    python examples/expand_by_hand.py COMPACT [FULL]

With FULL, every window of its first shard is held against it, bit for bit. docs/format.md has the
formulas.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Manifest = dict[str, Any]
Tensors = dict[str, Tensor]


def load(root: Path) -> tuple[Manifest, Tensors]:
    """The manifest and all tensors that q, k and v follow from; `stream` is the token stream."""
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    if manifest["format_version"] != 1:
        sys.exit(f"{root} has format version {manifest['format_version']}; 1 is known here")
    if manifest["job"]["artifact"] != "compact":
        sys.exit(f"{root} is a full export, whose q, k and v are in its shards already")
    names = {kind: [] for kind in ("tokens", "tables", "starts", "weights")}
    for file in manifest["files"]:
        names[file["kind"]].append(root / file["name"])
    tensors = load_file(names["tables"][0])
    for path in names["starts"]:  # none, where windows are a stride apart
        tensors |= load_file(path)
    parts = [load_file(path)["input_ids"] for path in names["tokens"]]
    return manifest, tensors | {"stream": torch.cat(parts)}


def ids_of(manifest: Manifest, t: Tensors, i: int) -> Tensor:
    """The input ids of window i, int32 [T]; places that are not real hold the end-of-text token."""
    windows = manifest["windows"]
    length = windows["context_length"]
    start = int(t["window_start"][i]) if "window_start" in t else i * windows["stride"]
    pairs = min(length, len(t["stream"]) - 1 - start)  # the last token is a target only
    if "window_pairs" in t:
        pairs = int(t["window_pairs"][i])
    ids = torch.full((length,), manifest["tokenizer"]["end_of_text"] or 0).int()
    ids[:pairs] = t["stream"][start : start + pairs]
    return ids


def qkv(manifest: Manifest, t: Tensors, i: int) -> tuple[Tensor, ...]:
    """q [H, T, Dh], k and v [Hk, T, Dh] of window i."""
    layer = manifest["layer"]
    heads, kv_heads = layer["heads"], layer["kv_heads"]
    row = torch.searchsorted(t["token_ids"], ids_of(manifest, t, i))
    out = t["token_table"][:, row]  # float32 [H + 2 Hk, T, Dh]: A
    if "position_table" in t:
        out = out + t["position_table"]  # B
    if "constant" in t:
        out = normalised(t, layer["eps"], row, out)
    if "rotary_cos" in t:
        pairs, interleaved = t["rotary_cos"].shape[1], layer["rotary_interleaved"]
        turned = out[: heads + kv_heads, :, : 2 * pairs]
        a, b = turned.unflatten(2, (-1, 2)).unbind(3) if interleaved else turned.split(pairs, 2)
        cos, sin = t["rotary_cos"], t["rotary_sin"]
        a[:], b[:] = a * cos - b * sin, b * cos + a * sin
    return out.to(getattr(torch, manifest["job"]["dtype"])).split([heads, kv_heads, kv_heads])


def normalised(t: Tensors, eps: float, row: Tensor, out: Tensor) -> Tensor:
    """r * out + c, where r is that of x = s E[t] + P[p]; from x where A + B would lose digits."""
    x = t["token_features"][row] + t["position_features"]
    centred = x
    if "token_means" in t:  # layernorm
        centred = x - (t["token_means"][row] + t["position_means"])[:, None]
    # Squares in float64, of which each 32nd are added in order, and then the 32 sums.
    lanes = F.pad(centred.double() ** 2, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    square = lanes.cumsum(1)[:, -1].cumsum(1)[:, -1]
    r = (square / x.shape[1] + eps).rsqrt().float()
    constant = t["constant"].view(len(out), 1, -1)
    out = out * r[:, None] + constant
    larger = torch.maximum(t["token_lengths"][row], t["position_lengths"])
    for p in (square < (larger.double() / 2) ** 2).nonzero().flatten():
        z = t["token_features"][row[p]].double() + t["position_features"][p]
        z -= z.mean() if "token_means" in t else 0
        z *= (z.square().mean() + eps).rsqrt()
        out[:, p] = torch.mv(t["weight"].double(), z).view(len(out), -1) + constant[:, 0]
    return out


def load_full(root: Path) -> Tensors:
    """q, k, v of the first shard of a full export, each as [W, heads, T, Dh]."""
    layout = json.loads((root / "manifest.json").read_text("utf-8"))["job"]["layout"]
    shard = load_file(min((root / "shards").iterdir()))
    return {
        name: shard[name].transpose(1, 2) if layout == "bthd" else shard[name] for name in "qkv"
    }


def compare(manifest: Manifest, t: Tensors, full: Tensors, root: Path) -> None:
    """Hold every window of the shard of the full export at root against what is computed here."""
    for i in range(len(full["q"])):
        for name, ours in zip("qkv", qkv(manifest, t, i), strict=True):
            theirs = full[name][i]
            if not torch.equal(ours, theirs):
                difference = float((ours.float() - theirs.float()).abs().max())
                sys.exit(f"window {i}: {name} differs from {root} by up to {difference:.3g}")
    print(f"q, k and v of {len(full['q'])} windows have the same bits as in {root}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    try:
        export = load(root)
        if len(sys.argv) == 3:
            root = Path(sys.argv[2])
            full = load_full(root)
    except Exception as error:  # whatever a damaged file leads to
        sys.exit(f"{root} is not a whole export: {type(error).__name__}: {error}")
    print("q, k and v of window 0:", *(list(tensor.shape) for tensor in qkv(*export, 0)))
    if len(sys.argv) == 3:
        compare(*export, full, root)
