"""The notebook's way scaled up: what one would write by hand, batch after batch, to safetensors.

    python benchmarks/notebook_way.py TEXT OUT --d-model 768

tiktoken, nn.Embedding, sinusoidal positions added, three nn.Linear, save_file for each shard. It
writes ids, targets, q, k and v; nothing is hashed or synced. q, k and v are left as [W, T, d], as
the notebook has them. The vocabulary is read from data/vocab, since tiktoken would download it.
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from jobs.tokenizer import tiktoken_encoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=512_000_000)
    arguments = parser.parse_args()
    d, length, batch_size = arguments.d_model, arguments.context_length, arguments.batch_size
    arguments.out.mkdir()

    encoding, _ = tiktoken_encoding("cl100k_base")
    tokens = torch.tensor(encoding.encode_ordinary(arguments.text.read_text("utf-8")))

    torch.manual_seed(0)
    embedding = nn.Embedding(encoding.n_vocab, d)
    projections = [nn.Linear(d, d) for _ in range(3)]
    position = torch.arange(length, dtype=torch.float).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, d, 2).float() * (-math.log(10000.0) / d))
    table = torch.zeros(length, d)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)

    windows = (len(tokens) - 1) // length
    per_shard = max(1, arguments.shard_size // (length * (2 * 4 + 3 * d * 4)))
    per_shard -= per_shard % batch_size if per_shard >= batch_size else 0
    with torch.no_grad():
        for shard, first in enumerate(range(0, windows, per_shard)):
            parts: dict[str, list[torch.Tensor]] = {n: [] for n in ("x", "y", "q", "k", "v")}
            stop = min(first + per_shard, windows)
            for at in range(first, stop, batch_size):
                starts = range(at * length, min(at + batch_size, stop) * length, length)
                x_batch = torch.stack([tokens[start : start + length] for start in starts])
                y_batch = torch.stack([tokens[start + 1 : start + length + 1] for start in starts])
                x = embedding(x_batch) + table
                parts["x"].append(x_batch.to(torch.int32))
                parts["y"].append(y_batch.to(torch.int32))
                for name, projection in zip("qkv", projections, strict=True):
                    parts[name].append(projection(x))
            tensors = {name: torch.cat(part) for name, part in parts.items()}
            save_file(tensors, arguments.out / f"shard-{shard:05d}.safetensors")


if __name__ == "__main__":
    main()
