"""Tensors of files that are mapped into memory -> memory of our own.

Who writes to a mapped file changes the tensors, and who cuts it off ends the process.
"""

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def owned(holder: T) -> T:
    """A dataclass with a copy of each CPU tensor in it, and in the dataclasses that it holds."""
    copies: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, Tensor) and value.device.type == "cpu":
            copies[field.name] = value.clone()
        elif is_dataclass(value) and not isinstance(value, type):
            copies[field.name] = owned(value)
    return replace(holder, **copies)
