import torch

from kernels.packed import pack
from tests.helpers import random_layer

CPU = torch.device("cpu")


def test_packing_stacks_q_k_v_and_fills_absent_biases_with_zeros() -> None:
    layer = random_layer(kv_heads=2)
    packed = pack(layer, CPU)
    assert tuple(packed.weight.shape) == (64 + 2 * 32, 64)
    assert torch.equal(layer.k_weight, packed.weight[64:96])
    assert packed.bias is not None
    assert torch.equal(torch.zeros(32), packed.bias[64:96])
    assert pack(random_layer(biases=False), CPU).bias is None


def test_packing_for_the_cpu_widens_all_but_the_embedding() -> None:
    packed = pack(random_layer(norm="layernorm").to(torch.bfloat16), CPU)
    assert packed.embedding.dtype == torch.bfloat16
    assert packed.weight.dtype == torch.float32
    assert packed.position is not None
    assert packed.position.dtype == torch.float32


def test_an_offset_of_norm_weights_is_added_in_float32() -> None:
    layer = random_layer(norm="rmsnorm", qk_norm="head", norm_offset=1.0).to(torch.bfloat16)
    packed = pack(layer, CPU)
    for found, weight in (
        (packed.norm_weight, layer.norm_weight),
        (packed.q_norm, layer.q_norm),
        (packed.k_norm, layer.k_norm),
    ):
        assert weight is not None
        assert found is not None
        assert torch.equal(weight.float() + 1, found)
