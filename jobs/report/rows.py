"""Rows of one tensor of an export's file, read by ranges: nothing is mapped or copied whole."""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from exporters.bucket import Place
from exporters.errors import DamageError
from exporters.safefile import open_regular, read_header


def read_rows(path: Place, name: str, stretches: Iterable[tuple[int, int]]) -> Tensor:
    """The rows [low, high) of each stretch of a tensor, one below the other, in its dtype.

    Raises:
        DamageError: if the file is no safetensors file, is cut short, or cannot be read.
        KeyError: if it has no such tensor.
    """
    data = bytearray()
    try:
        entry = read_header(path).tensors[name]
        dtype: torch.dtype = getattr(torch, entry.dtype)
        row = dtype.itemsize * prod(entry.shape[1:])
        with open_regular(path) as file:
            for low, high in stretches:
                file.seek(entry.first_byte + low * row)
                found = file.read((high - low) * row)
                if len(found) != (high - low) * row:
                    raise DamageError(f"{path} is cut short")
                data += found
    except OSError as error:
        raise DamageError(f"{path} could not be read: {error.strerror}") from error
    return torch.frombuffer(data, dtype=dtype).view(-1, *entry.shape[1:])
