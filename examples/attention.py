"""Causal attention over the first window of an export: python examples/attention.py OUT"""

import sys
from pathlib import Path

from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

shard = load_file(sorted(Path(sys.argv[1], "shards").iterdir())[0])
q, k, v = (shard[name][:1] for name in "qkv")  # [1, H, T, Dh], and [1, Hk, T, Dh] twice
out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
print(f"{len(shard['q'])} windows in the shard; attention over the first: {list(out.shape)}")
