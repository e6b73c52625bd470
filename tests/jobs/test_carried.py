"""Dataclasses of tensors as NumPy arrays and back."""

import pickle
from dataclasses import fields

import pytest
import torch

from jobs.carried import arrived, carried
from kernels.layer import DTYPES
from kernels.packed import PackedLayer, pack
from kernels.tables import build
from tests.helpers import random_layer

CPU = torch.device("cpu")


def sent(value: object) -> object:
    return arrived(pickle.loads(pickle.dumps(carried(value))))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_layer_arrives_with_its_bits_and_types(dtype: torch.dtype) -> None:
    layer = random_layer(rotary=8, positions=False, norm="rmsnorm").to(dtype)
    packed = pack(layer, CPU)
    there = sent(packed)
    assert isinstance(there, PackedLayer)
    assert there.embedding.dtype == dtype
    for field in fields(packed):
        ours, theirs = getattr(packed, field.name), getattr(there, field.name)
        if isinstance(ours, torch.Tensor):
            assert theirs.dtype == ours.dtype
            assert torch.equal(theirs, ours)
        elif field.name == "rotary":
            assert torch.equal(theirs.cos, ours.cos)
            assert torch.equal(theirs.sin, ours.sin)
        else:
            assert theirs == ours


def test_tables_arrive_and_find_their_rows() -> None:
    tables = build(random_layer(norm="layernorm"), torch.tensor([3, 7, 99], dtype=torch.int32), CPU)
    there = sent(tables)
    assert isinstance(there, type(tables))
    assert torch.equal(there.token_table, tables.token_table)
    assert there.norm is not None
    assert tables.norm is not None
    assert torch.equal(there.norm.token_lengths, tables.norm.token_lengths)
    assert there.rows(torch.tensor([[99, 3]])).tolist() == [[2, 0]]


def test_memory_is_shared_and_may_be_read_only() -> None:
    array = carried(torch.arange(5.0))
    array.values.flags.writeable = False
    assert arrived(array).data_ptr() == array.values.ctypes.data


def test_other_values_go_as_they_are() -> None:
    assert sent({"a": (1, None)}) == {"a": (1, None)}
    assert sent(None) is None
