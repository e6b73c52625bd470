from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.owned import owned


@dataclass(frozen=True)
class Inner:
    tensor: Tensor
    none: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    tensor: Tensor
    inner: Inner
    number: int


def test_every_tensor_is_a_copy_and_the_rest_is_the_same() -> None:
    mapped = torch.zeros(4)
    copy = owned(Outer(mapped[:2], Inner(mapped[2:]), 7))
    mapped += 1
    assert copy.tensor.tolist() == copy.inner.tensor.tolist() == [0.0, 0.0]
    assert (copy.inner.none, copy.number) == (None, 7)
