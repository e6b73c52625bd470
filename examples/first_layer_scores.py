"""First-layer attention of the model that an export was made with, against the model's own:

    qkvmill run CORPUS --weights MODEL --out OUT
    python examples/first_layer_scores.py MODEL OUT

For models whose scores are q k^T / sqrt(Dh) and causal, without caps: gpt2, gpt_neox, llama,
mistral, olmo2, phi, phi3, qwen2 and qwen3.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from exporters.reading import open_export

PLAIN = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3")

if len(sys.argv) != 3:
    sys.exit(__doc__)
export = open_export(sys.argv[2])
family = export.manifest.layer["family"] if export.manifest.layer else None
if family not in PLAIN:
    sys.exit(f"{sys.argv[2]} was made with {family}, whose attention is not known here")
window = export[0]
q, k = window["q"], window["k"]  # [H, T, Dh] and [Hk, T, Dh]
if export.manifest.job["layout"] == "bthd":
    q, k = q.transpose(0, 1), k.transpose(0, 1)
k = k.repeat_interleave(len(q) // len(k), 0)  # query heads that share a key head stand together
scores = (q @ k.transpose(1, 2)).float() / q.shape[-1] ** 0.5
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
