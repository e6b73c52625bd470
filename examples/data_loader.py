"""Shuffled batches of windows from two worker processes, as a training loop takes them:

    qkvmill run CORPUS --out OUT
    python examples/data_loader.py OUT

OUT may be full or compact (--artifact compact), which workers compute from; the tensors are the
same. Of an export of tokens only, batches hold ids.
"""

import sys

import torch
from torch.utils.data import DataLoader

from exporters.reading import open_export
from kernels.errors import QkvmillError


def main(path: str) -> None:
    windows = open_export(path)
    names = windows[0].keys()  # read here too: a damaged export is told of before workers start
    loader = DataLoader(
        windows,
        batch_size=4,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),  # the same order each time
        num_workers=2,
        multiprocessing_context="spawn",  # a forked process must not use torch's threads
    )
    seen = []
    for step, batch in enumerate(loader):
        if step == 0:
            for name, tensor in batch.items():
                print(f"{name}: {tensor.dtype} {list(tensor.shape)}")
        if "input_ids" in names:
            # A loss compares what a model makes of the one with the other.
            inputs, targets = batch["input_ids"].long(), batch["target_ids"].long()
            real = batch.get("mask", torch.ones_like(inputs, dtype=torch.bool))  # with --tail pad
            assert torch.equal(inputs[:, 1:][real[:, 1:]], targets[:, :-1][real[:, 1:]])
        seen += batch["window_start"].tolist()
    print(f"{len(seen)} windows in {len(loader)} batches, from the places {seen[:8]} ...")


if __name__ == "__main__":  # which spawned workers need
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except QkvmillError as error:
        sys.exit(str(error).splitlines()[-1])  # of a worker's, its traceback stands above that
