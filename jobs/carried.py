"""Dataclasses of tensors <-> the same of NumPy arrays, which Ray shares without copying them."""

import warnings
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Array:
    """A tensor as NumPy knows it: bfloat16, which it does not know, as int16."""

    values: NDArray[Any]
    dtype: torch.dtype


@dataclass(frozen=True)
class Carried:
    """A dataclass whose tensors are Arrays."""

    kind: type
    values: dict[str, Any]


def carried(value: Any) -> Any:
    """A value with Arrays for its tensors, and Carried for dataclasses that hold some."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        known = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
        return Array(known.numpy(), value.dtype)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return Carried(type(value), {name: carried(part) for name, part in parts.items()})
    return value


def arrived(value: Any) -> Any:
    """The value again; its tensors are the arrays' memory, which may be read-only."""
    if isinstance(value, Array):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensor = torch.from_numpy(value.values)
        return tensor.view(value.dtype)
    if isinstance(value, Carried):
        return value.kind(**{name: arrived(part) for name, part in value.values.items()})
    return value
