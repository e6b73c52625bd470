"""First-layer attention of the model that an export was made with, against the model's own:

    qkvmill run CORPUS --weights MODEL --out OUT
    python examples/first_layer_scores.py MODEL OUT

For families whose attention is causal and caps no scores; needs transformers.
"""

import sys

import torch

from exporters.reading import open_export
from kernels.errors import QkvmillError

try:
    from transformers import AutoModelForCausalLM
except ModuleNotFoundError as error:
    sys.exit(f"{error}; pip install 'qkvmill[bench]' has it")

OTHERS = {"bert": "is not causal", "distilbert": "is not causal", "gemma2": "caps its scores",
          "roberta": "is not causal"}  # fmt: skip

if len(sys.argv) != 3:
    sys.exit(__doc__)
try:
    export = open_export(sys.argv[2])
    window = export[0]
except QkvmillError as error:
    sys.exit(str(error))
layer = export.manifest.layer
if layer is None or layer["family"] is None:
    sys.exit(f"{sys.argv[2]} was not made with a model's folder")
if layer["family"] in OTHERS:
    sys.exit(f"the attention of {layer['family']} {OTHERS[layer['family']]}")
q, k = window["q"], window["k"]  # [H, T, Dh] and [Hk, T, Dh]
if export.manifest.job["layout"] == "bthd":
    q, k = q.transpose(0, 1), k.transpose(0, 1)
k = k.repeat_interleave(len(q) // len(k), 0)  # query heads that share a key head stand together
scores = (q @ k.transpose(1, 2)).float() * layer["attention_scale"]
later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
ours = scores.masked_fill(later, -torch.inf).softmax(-1)  # [H, T, T]

model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], dtype=q.dtype, attn_implementation="eager"
).eval()
with torch.no_grad():
    answer = model(window["input_ids"][None].long(), output_attentions=True)
theirs = answer.attentions[0][0]  # [H, T, T]
print(f"attention {list(ours.shape)}, each row sums to {float(ours.sum(-1).mean()):.6f}")
print(f"largest difference from the model's own {float((ours - theirs).abs().max()):.3g}")
