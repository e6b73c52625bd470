"""A small random llama with a tokenizer, to try things on: python examples/small_model.py DIR

It is laid out as models on the Hugging Face hub are; needs transformers and tokenizers.
"""

import sys
from pathlib import Path

import torch

try:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM
except ModuleNotFoundError as error:
    sys.exit(f"{error}; pip install 'qkvmill[bench,hf]' has it")

if len(sys.argv) != 2:
    sys.exit(__doc__)
folder = Path(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=600, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
    num_hidden_layers=2, intermediate_size=128, max_position_embeddings=256,
)  # fmt: skip
LlamaForCausalLM(config).save_pretrained(folder)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=600, special_tokens=["</s>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)  # fmt: skip
texts = [
    path.read_text("utf-8")
    for path in sorted((Path(__file__).parent.parent / "data").rglob("*.txt"))
]
tokenizer.train_from_iterator(texts, trainer)
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
print(f"{folder}: a llama with {tokenizer.get_vocab_size()} tokens")
