"""The tensors of a safetensors file in a bucket, whose rows are read when they are needed."""

from collections.abc import Collection
from math import prod

import torch
from torch import Tensor

from exporters.bucket import Bucket, each
from exporters.safefile import read_header


class ObjectTensors:
    """A file of which only the header is held.

    Raises:
        ExportError: here or by `rows`, if it cannot be read or breaks a rule of the format.
    """

    def __init__(self, place: Bucket) -> None:
        self.place = place
        self.tensors = read_header(place).tensors

    def rows(self, low: int, high: int, names: Collection[str]) -> dict[str, Tensor]:
        """Rows [low, high) of those tensors that are named, which have as many; a request each."""

        def read(name: str) -> Tensor:
            entry = self.tensors[name]
            dtype: torch.dtype = getattr(torch, entry.dtype)
            row = dtype.itemsize * prod(entry.shape[1:])
            begin = entry.first_byte
            data = self.place.read(begin + low * row, begin + high * row)
            return torch.frombuffer(bytearray(data), dtype=dtype).view(-1, *entry.shape[1:])

        wanted = [name for name in self.tensors if name in names]
        return dict(zip(wanted, each(read, wanted), strict=True))
