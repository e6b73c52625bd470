import pytest
import torch
from torch import nn

from kernels.errors import LayerError
from kernels.layer import FirstLayer, seeded_layer
from tests.helpers import random_layer

CPU = torch.device("cpu")


def test_a_seeded_layer_is_what_torch_makes_after_manual_seed() -> None:
    layer = seeded_layer(
        vocabulary_size=50, d_model=24, heads=6, kv_heads=2,
        context_length=8, positions="learned", seed=7,
    )  # fmt: skip
    torch.manual_seed(7)
    embedding = nn.Embedding(50, 24)
    q, k, v = nn.Linear(24, 24), nn.Linear(24, 8), nn.Linear(24, 8)
    position = nn.Embedding(8, 24)
    assert torch.equal(embedding.weight, layer.embedding)
    assert torch.equal(q.weight, layer.q_weight)
    assert torch.equal(k.weight, layer.k_weight)
    assert torch.equal(v.weight, layer.v_weight)
    assert torch.equal(v.bias, layer.v_bias if layer.v_bias is not None else torch.empty(0))
    assert torch.equal(position.weight, layer.position if layer.position is not None else q.bias)


def test_making_a_layer_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    seeded_layer(
        vocabulary_size=5, d_model=4, heads=1, kv_heads=1,
        context_length=2, positions="none", seed=9,
    )  # fmt: skip
    assert torch.equal(before, torch.random.get_rng_state())


def with_shapes(**shapes: tuple[int, ...]) -> FirstLayer:
    tensors = {
        "embedding": (9, 8), "q_weight": (8, 8), "k_weight": (4, 8), "v_weight": (4, 8), **shapes
    }  # fmt: skip
    return FirstLayer(
        **{name: torch.zeros(shape) for name, shape in tensors.items()},  # type: ignore[arg-type]
        heads=4,
        kv_heads=2,
    )


@pytest.mark.parametrize(
    ("shapes", "culprit"),
    [
        ({"embedding": (9,)}, "embedding.weight"),
        ({"embedding": (0, 8)}, "embedding.weight"),
        ({"q_weight": (8,)}, "q_proj.weight"),
        ({"q_weight": (7, 8)}, "q_proj.weight"),
        ({"q_weight": (8, 7)}, "q_proj.weight"),
        ({"k_weight": (8, 8)}, "k_proj.weight"),
        ({"v_weight": (4, 9)}, "v_proj.weight"),
        ({"q_bias": (4,)}, "q_proj.bias"),
        ({"v_bias": (8,)}, "v_proj.bias"),
        ({"norm_weight": (8,)}, "norm.weight"),
        ({"position": (3, 8)}, "position.weight"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    shapes: dict[str, tuple[int, ...]], culprit: str
) -> None:
    with pytest.raises(LayerError, match=culprit):
        with_shapes(**shapes)


def test_heads_must_share_evenly() -> None:
    layer = random_layer(heads=4)
    with pytest.raises(LayerError, match="3 key/value heads"):
        FirstLayer(
            embedding=layer.embedding, q_weight=layer.q_weight, k_weight=layer.k_weight,
            v_weight=layer.v_weight, heads=4, kv_heads=3,
        )  # fmt: skip


def test_a_value_beyond_float16_is_an_error_and_not_infinity() -> None:
    layer = random_layer()
    layer.q_weight[0, 0] = 1e5
    assert layer.to(torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(LayerError, match=r"q_proj\.weight.*65504"):
        layer.to(torch.float16)
