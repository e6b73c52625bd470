"""First-layer attention of the model that an export was made with, against the model's own:

qkvmill run CORPUS --weights MODEL --out OUT
python examples/first_layer_scores.py MODEL OUT
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from exporters.reading import open_export

if len(sys.argv) != 3:
    sys.exit(__doc__)
window = open_export(sys.argv[2])[0]
q, k = window["q"], window["k"]  # [H, T, Dh] and [Hk, T, Dh]
k = k.repeat_interleave(len(q) // len(k), 0)  # query heads that share a key head stand together
scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
ours = scores.masked_fill(later, -torch.inf).softmax(-1)  # [H, T, T]

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
with torch.no_grad():
    answer = model(window["input_ids"][None].long(), output_attentions=True)
theirs = answer.attentions[0][0]  # [H, T, T]
print(f"attention {list(ours.shape)}, each row sums to {float(ours.sum(-1).mean()):.6f}")
print(f"largest difference from the model's own {float((ours - theirs).abs().max()):.3g}")
