"""Causal attention over the first window of an export: python examples/attention.py OUT"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

if len(sys.argv) != 2:
    sys.exit(__doc__)
export = Path(sys.argv[1])
layout = json.loads((export / "manifest.json").read_text("utf-8"))["job"]["layout"]
shard = load_file(sorted((export / "shards").iterdir())[0])
q, k, v = (shard[name][:1] for name in "qkv")  # [1, H, T, Dh], and [1, Hk, T, Dh] twice
if layout == "bthd":
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
print(f"{len(shard['q'])} windows in the shard; attention over the first: {list(out.shape)}")
