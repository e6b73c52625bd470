"""An attention benchmark on q, k, v of real text in place of randn of the same shape and dtype:

    qkvmill run CORPUS --weights MODEL --out OUT
    python examples/attention_benchmark.py OUT [ROUNDS]

It shows how the values differ, and what attention makes of them, and times both turn by turn. OUT
may be full or compact, of either layout. It runs on the GPU where torch sees one.
"""

import sys
import time
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from exporters.reading import open_export
from kernels.errors import QkvmillError

WINDOWS = 8  # at most
Inputs = tuple[Tensor, Tensor, Tensor]  # q [W, H, T, Dh], k and v [W, Hk, T, Dh]


def load(path: str, device: str) -> tuple[Inputs, float]:
    """q, k and v of the first windows without padding, and what attention multiplies scores by."""
    export = open_export(path)
    if "qkv" not in export.manifest.job["export"]:
        sys.exit(f"{path} holds no q, k, v; give qkvmill run --export qkv too")
    batch = next(export.batches(WINDOWS, device))
    if "mask" in batch:
        batch = {name: tensor[batch["mask"].all(1)] for name, tensor in batch.items()}
        if len(batch["q"]) == 0:
            sys.exit(f"{path} has padding in its first {WINDOWS} windows; leave --tail pad out")
    q, k, v = (batch[name] for name in "qkv")
    if export.manifest.job["layout"] == "bthd":
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (q, k, v))
    said = export.manifest.layer["attention_scale"]
    return (q, k, v), q.shape[-1] ** -0.5 if said is None else said


def of_values(x: Tensor) -> list[float]:
    """Mean, standard deviation, largest |value|, excess kurtosis, share beyond 4 deviations."""
    x = x.double()
    centred = (x - x.mean()) / x.std(correction=0)
    largest, kurtosis = x.abs().max(), (centred**4).mean() - 3
    outside = (centred.abs() > 4).double().mean()
    return [float(value) for value in (x.mean(), x.std(), largest, kurtosis, outside)]


def of_attention(inputs: Inputs, scale: float) -> list[float]:
    """Means over the rows of causal attention in the first window: entropy [nats], largest weight.

    The first row, which sees itself only, is left out.
    """
    q, k = (tensor[0].double() for tensor in inputs[:2])
    k = k.repeat_interleave(len(q) // len(k), 0)
    scores = q @ k.transpose(1, 2) * scale
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)[:, 1:]
    entropy = torch.special.entr(weights).sum(-1)
    return [float(entropy.mean()), float(weights.max(-1).values.mean())]


def seconds(inputs: Inputs, scale: float) -> float:
    """What one call of scaled_dot_product_attention takes."""
    wait = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=True)
    wait()
    return time.perf_counter() - began


def main(path: str, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    real, scale = load(path, device)
    generator = torch.Generator(device).manual_seed(0)
    normal = tuple(
        torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator) for x in real
    )
    cores = f"the CPU, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if device == "cuda" else cores
    shapes = f"q {list(real[0].shape)}, k and v {list(real[1].shape)}"
    print(f"{shapes}, {real[0].dtype}, on {where}, torch {torch.__version__}")
    print(f"{'':9}{'mean':>10}{'std':>10}{'largest':>10}{'kurtosis':>10}{'beyond 4':>10}")
    for name, x, other in zip("qkv", real, normal, strict=True):
        for kind, values in (("text", of_values(x)), ("randn", of_values(other))):
            print(f"{name} {kind:7}" + "".join(f"{value:10.4g}" for value in values))
    times: dict[str, list[float]] = {"text": [], "randn": []}
    for turn in range(rounds + 2):  # the first two warm up
        for kind, inputs in (("text", real), ("randn", normal)):
            taken = seconds(inputs, scale)
            times[kind] += [taken] if turn > 1 else []
    for kind, inputs in (("text", real), ("randn", normal)):
        entropy, largest = of_attention(inputs, scale)
        print(f"attention {kind:6} entropy {entropy:.4f}, largest weight {largest:.4f}, "
              f"median {1000 * median(times[kind]):.4g} ms of {rounds}")  # fmt: skip


if __name__ == "__main__":
    rounds = sys.argv[2] if len(sys.argv) == 3 else "20"
    if len(sys.argv) not in (2, 3) or not rounds.isdecimal() or int(rounds) < 1:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], int(rounds))
    except QkvmillError as error:
        sys.exit(str(error))
