"""A transformers model whose first layer looks q, k and v up instead of multiplying:

    qkvmill run CORPUS --weights MODEL --out COMPACT --artifact compact
    python examples/first_layer_lookup.py MODEL COMPACT

MODEL is the folder of a gpt2, llama, mistral or qwen2 model. Tables hold the tokens of CORPUS, and
no others. Needs transformers.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from exporters.reading import Export, open_export
from kernels.combine import combine
from kernels.errors import QkvmillError

try:
    from transformers import AutoModelForCausalLM
except ModuleNotFoundError as error:
    sys.exit(f"{error}; pip install 'qkvmill[bench]' has it")


class Looked(nn.Module):
    """Stands where a projection stood, and gives what was looked up for it."""

    def __init__(self, found: dict[str, Tensor], names: Sequence[str]) -> None:
        super().__init__()
        self.found, self.names = found, names

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.found[name] for name in self.names], -1)


def look_up(model: nn.Module, export: Export) -> None:
    """Replace the first layer's projections of q, k and v by the tables of a compact export.

    Raises:
        ValueError: if the model's projections stand elsewhere, or are normalised after.
    """
    kind = model.config.model_type  # type: ignore[union-attr]
    if kind not in ("gpt2", "llama", "mistral", "qwen2"):
        raise ValueError(f"gpt2, llama, mistral and qwen2 are known here, but not {kind}")
    tables = replace(export.tables(), rotary=None)  # the model turns q and k itself
    found: dict[str, Tensor] = {}

    def fill(embedding: nn.Module, inputs: tuple[Tensor]) -> None:
        ids = inputs[0]
        for name, heads in (("q", tables.heads), ("k", tables.kv_heads), ("v", tables.kv_heads)):
            shape = (*ids.shape, heads, tables.head_dim)
            found[name] = torch.empty(shape, dtype=model.dtype)  # type: ignore[call-overload]
        by_head = {name: tensor.transpose(1, 2) for name, tensor in found.items()}
        combine(tables, tables.rows(ids), **by_head)
        found.update({name: tensor.flatten(2) for name, tensor in found.items()})

    model.get_input_embeddings().register_forward_pre_hook(fill)  # type: ignore[operator]
    if hasattr(model, "transformer"):
        model.transformer.h[0].attn.c_attn = Looked(found, "qkv")
    else:
        for name in "qkv":
            setattr(model.model.layers[0].self_attn, f"{name}_proj", Looked(found, name))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        windows = open_export(sys.argv[2])
        ids = windows[0]["input_ids"][None].long()
    except QkvmillError as error:
        sys.exit(str(error))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    with torch.no_grad():
        multiplied = model(ids).logits
        try:
            look_up(model, windows)
        except ValueError as error:
            sys.exit(str(error))
        looked_up = model(ids).logits
    print(f"logits {list(looked_up.shape)}, largest {float(multiplied.abs().max()):.3g}")
    print(f"largest difference by lookup {float((multiplied - looked_up).abs().max()):.3g}")
