"""Write a first layer of your own for --weights: python examples/own_weights.py FILE.safetensors"""

import json
import sys

import torch
from safetensors.torch import save_file

if len(sys.argv) != 2:
    sys.exit(__doc__)
vocabulary_size, d, heads, kv_heads, head_dim, positions = 100277, 48, 6, 2, 8, 512
tensors = {
    "embedding.weight": torch.randn(vocabulary_size, d),
    "position.weight": torch.randn(positions, d),  # leave out for a model that adds none
    "norm.weight": torch.ones(d),  # with norm.bias: leave out for a model without a norm
    "norm.bias": torch.zeros(d),
    "q_proj.weight": torch.randn(heads * head_dim, d) / d**0.5,  # as nn.Linear has it: [out, in]
    "k_proj.weight": torch.randn(kv_heads * head_dim, d) / d**0.5,
    "v_proj.weight": torch.randn(kv_heads * head_dim, d) / d**0.5,
    "q_proj.bias": torch.zeros(heads * head_dim),  # any bias may be left out
}
scalars = {"heads": heads, "kv_heads": kv_heads, "norm": "layernorm", "eps": 1e-5}
save_file(tensors, sys.argv[1], metadata={"qkvmill": json.dumps(scalars)})
