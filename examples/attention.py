"""Causal attention over the first window of an export, with nothing but safetensors and torch:

qkvmill run CORPUS --out OUT
python examples/attention.py OUT
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

if len(sys.argv) != 2:
    sys.exit(__doc__)
export = Path(sys.argv[1])
try:
    manifest = json.loads((export / "manifest.json").read_text("utf-8"))
    if manifest["format_version"] != 1:
        sys.exit(f"{export} has format version {manifest['format_version']}; 1 is known here")
    job = manifest["job"]
    if job["artifact"] != "full" or "qkv" not in job["export"]:
        sys.exit(f"{export} has no shards of q, k, v; expand it, or run with --export qkv")
    shards = [file["name"] for file in manifest["files"] if file["kind"] == "windows"]
    shard = load_file(export / shards[0])
except Exception as error:  # whatever a damaged file leads to
    sys.exit(f"{export} is not a whole export: {type(error).__name__}: {error}")

q, k, v = (shard[name][:1] for name in "qkv")  # [1, H, T, Dh], and [1, Hk, T, Dh] twice
if job["layout"] == "bthd":
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
scale = manifest["layer"]["attention_scale"]  # None, which stands for Dh^-0.5, if nothing is said
out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
print(f"{len(shard['q'])} windows in the shard; attention over the first: {list(out.shape)}")
