import fsspec
import pytest
import torch
from safetensors.torch import save

from exporters.bucket import Bucket
from exporters.errors import ExportError
from exporters.objecttensors import ObjectTensors


def test_rows_are_those_of_the_library() -> None:
    tensors = {
        "bools": torch.tensor([True, False, True, True]),
        "halves": torch.randn(4, 2, 3).bfloat16(),
        "floats": torch.randn(4, 5),
        "longs": torch.arange(4),
    }
    place = Bucket("memory://objects/a.safetensors")
    place.put(save(tensors))
    try:
        rows = ObjectTensors(place).rows(1, 3, tensors)
        assert tensors.keys() == rows.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor[1:3], rows[name]), name
        assert ObjectTensors(place).rows(1, 3, ["longs"]).keys() == {"longs"}
        place.put(save(tensors)[:-1])
        with pytest.raises(ExportError, match="follow the header"):
            ObjectTensors(place)
    finally:
        fsspec.filesystem("memory").store.clear()
