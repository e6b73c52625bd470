"""FirstLayer: the parameters of everything a transformer computes before its first attention."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.errors import LayerError
from kernels.frequencies import inverse_frequencies
from kernels.names import DTYPE_NAMES, Positions
from kernels.positions import sinusoidal
from kernels.rotary import Rotary, rotary_of

Norm = Literal["none", "layernorm", "rmsnorm"]

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True, kw_only=True)
class FirstLayer:
    """The function `[q | k | v] = W norm(s * E[t] + P[p]) + b`; what is None is absent from it.

    q and k are then normalised, head by head or all heads together (RMSNorm), and turned by rotary
    positions. V is the vocabulary size, d the model width, T the longest window, H and Hk the
    numbers of query and key/value heads, Dh the head width, R the values of a head that turn.

    Raises:
        LayerError: if the shapes do not fit together.
    """

    embedding: Tensor  # [V, d]
    q_weight: Tensor  # [H*Dh, d]
    k_weight: Tensor  # [Hk*Dh, d]
    v_weight: Tensor  # [Hk*Dh, d]
    q_bias: Tensor | None = None  # [H*Dh]
    k_bias: Tensor | None = None  # [Hk*Dh]
    v_bias: Tensor | None = None  # [Hk*Dh]
    position: Tensor | None = None  # [T, d]
    norm_weight: Tensor | None = None  # [d]
    norm_bias: Tensor | None = None  # [d]
    q_norm: Tensor | None = None  # [Dh] or [H*Dh]
    k_norm: Tensor | None = None  # [Dh] or [Hk*Dh]
    rotary_cos: Tensor | None = None  # float32 [T, R/2], whatever the dtype of the others
    rotary_sin: Tensor | None = None  # float32 [T, R/2]
    heads: int
    kv_heads: int
    norm: Norm = "none"
    positions: Positions = "none"
    eps: float = 1e-5
    embedding_scale: float = 1.0
    norm_offset: float = 0.0  # what is added to norm_weight, q_norm and k_norm
    rotary_interleaved: bool = False

    def __post_init__(self) -> None:
        if self.embedding.ndim != 2 or 0 in self.embedding.shape:
            raise LayerError(f"embedding.weight has shape {list(self.embedding.shape)}, not [V, d]")
        if self.q_weight.ndim != 2:
            raise LayerError(f"q_proj.weight has shape {list(self.q_weight.shape)}, not [H*Dh, d]")
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise LayerError(
                f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly"
            )
        width = self.q_weight.shape[0]
        if width == 0 or width % self.heads:
            raise LayerError(
                f"{width} rows of q_proj.weight cannot be split into {self.heads} heads"
            )
        d, kv_width = self.d_model, self.kv_heads * self.head_dim
        expected = {
            "q_weight": (width, d),
            "k_weight": (kv_width, d),
            "v_weight": (kv_width, d),
            "q_bias": (width,),
            "k_bias": (kv_width,),
            "v_bias": (kv_width,),
            "norm_weight": (d,),
            "norm_bias": (d,),
        }
        if self.position is not None:
            expected["position"] = (self.position.shape[0], d)
        for field, tensor in self.tensors().items():
            if field in expected and tuple(tensor.shape) != expected[field]:
                raise LayerError(
                    f"{TENSOR_NAMES[field]} has shape {list(tensor.shape)}, "
                    f"but {list(expected[field])} is needed beside embedding.weight "
                    f"{list(self.embedding.shape)}, {self.heads} heads and "
                    f"{self.kv_heads} key/value heads"
                )
        if self.norm == "none" and (self.norm_weight is not None or self.norm_bias is not None):
            raise LayerError("norm.weight or norm.bias is given, but the kind of norm is none")
        if self.norm == "rmsnorm" and self.norm_bias is not None:
            raise LayerError("norm.bias is given, but rmsnorm has no bias")
        if (self.position is None) == (self.positions in ("sinusoidal", "learned")):
            raise LayerError(f"positions are {self.positions}, which does not fit position.weight")
        self._check_heads()

    def _check_heads(self) -> None:
        """Raise LayerError unless what is done to q and k fits their heads."""
        norms = [weight for weight in (self.q_norm, self.k_norm) if weight is not None]
        shapes = [list(weight.shape) for weight in norms]
        all_heads = [[count * self.head_dim] for count in (self.heads, self.kv_heads)]
        if shapes not in ([], 2 * [[self.head_dim]], all_heads):
            raise LayerError(
                f"q_norm.weight and k_norm.weight have shapes {shapes}, not those of a head "
                f"[{self.head_dim}] or of all heads {all_heads}"
            )
        tables = (self.rotary_cos, self.rotary_sin)
        if (self.positions == "rope") != all(table is not None for table in tables) or (
            (self.rotary_cos is None) != (self.rotary_sin is None)
        ):
            raise LayerError(f"positions are {self.positions}, which does not fit rotary.cos, .sin")
        sizes = [tuple(table.shape) for table in tables if table is not None]
        if any(len(size) != 2 or not 2 <= 2 * size[1] <= self.head_dim for size in sizes):
            raise LayerError(
                f"rotary.cos and rotary.sin have shapes {sizes}, "
                f"not [T, R/2] with R at most the head width {self.head_dim}"
            )
        if any(table is not None and table.dtype != torch.float32 for table in tables):
            raise LayerError("rotary.cos and rotary.sin are not float32")
        if len(set(sizes)) > 1:
            raise LayerError(f"rotary.cos and rotary.sin have different shapes, {sizes}")

    @property
    def vocabulary_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def d_model(self) -> int:
        return self.embedding.shape[1]

    @property
    def head_dim(self) -> int:
        return self.q_weight.shape[0] // self.heads

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def rotary(self) -> Rotary | None:
        """The angles by which q and k turn."""
        if self.rotary_cos is None or self.rotary_sin is None:
            return None
        return Rotary(self.rotary_cos, self.rotary_sin, self.rotary_interleaved)

    @property
    def rotary_dims(self) -> int:
        """R: how many values of a head turn."""
        return 0 if self.rotary_cos is None else 2 * self.rotary_cos.shape[1]

    @property
    def qk_norm(self) -> Literal["none", "head", "all"]:
        """Whether q and k are normalised, head by head or all heads together."""
        if self.q_norm is None:
            return "none"
        return "head" if len(self.q_norm) == self.head_dim else "all"

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that are there, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def named_tensors(self) -> dict[str, Tensor]:
        """The parameters that are there, by their names on disk."""
        return {TENSOR_NAMES[field]: tensor for field, tensor in self.tensors().items()}

    def on(self, device: torch.device) -> "FirstLayer":
        """The same layer with every parameter on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> "FirstLayer":
        """The same layer with every parameter but the angles rounded to dtype.

        Raises:
            LayerError: if a parameter is beyond float16's range.
        """
        tensors = {name: t for name, t in self.tensors().items() if name not in ANGLES}
        converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        for name, tensor in converted.items():
            if dtype == torch.float16 and not bool(torch.isfinite(tensor).all()):
                raise LayerError(
                    f"{TENSOR_NAMES[name]} has values beyond float16's largest, 65504; "
                    "use bfloat16 or float32"
                )
        return replace(self, **converted)  # type: ignore[arg-type]


TENSOR_NAMES = {
    "embedding": "embedding.weight",
    "position": "position.weight",
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
    "q_norm": "q_norm.weight",
    "k_norm": "k_norm.weight",
    "rotary_cos": "rotary.cos",
    "rotary_sin": "rotary.sin",
    "q_weight": "q_proj.weight",
    "q_bias": "q_proj.bias",
    "k_weight": "k_proj.weight",
    "k_bias": "k_proj.bias",
    "v_weight": "v_proj.weight",
    "v_bias": "v_proj.bias",
}
"""Field of FirstLayer -> name of the tensor on disk and in messages."""

ANGLES = ("rotary_cos", "rotary_sin")


def seeded_layer(
    *,
    vocabulary_size: int,
    d_model: int,
    heads: int,
    kv_heads: int,
    context_length: int,
    positions: Positions,
    seed: int,
) -> FirstLayer:
    """The layer as the notebook makes it, repeatable by hand in plain torch.

    After `torch.manual_seed(seed)` it draws, in this order, nn.Embedding(V, d), nn.Linear(d, H*Dh)
    for q, nn.Linear(d, Hk*Dh) for k and for v (all with bias), and for learned positions
    nn.Embedding(T, d). Rotary positions are those of `rotary_table`. The global generator is left
    as it was.

    Raises:
        LayerError: if d_model cannot be split into heads.
    """
    if d_model % heads:
        raise LayerError(f"d-model {d_model} cannot be split into {heads} heads evenly")
    head_dim = d_model // heads
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        embedding = nn.Embedding(vocabulary_size, d_model)
        q = nn.Linear(d_model, heads * head_dim)
        k = nn.Linear(d_model, kv_heads * head_dim)
        v = nn.Linear(d_model, kv_heads * head_dim)
        position = position_table(positions, context_length, d_model)
        if positions == "learned":
            position = nn.Embedding(context_length, d_model).weight.detach()
    rotary = rotary_table(context_length, head_dim) if positions == "rope" else None
    return FirstLayer(
        embedding=embedding.weight.detach(),
        q_weight=q.weight.detach(),
        k_weight=k.weight.detach(),
        v_weight=v.weight.detach(),
        q_bias=q.bias.detach(),
        k_bias=k.bias.detach(),
        v_bias=v.bias.detach(),
        position=position,
        rotary_cos=rotary.cos if rotary else None,
        rotary_sin=rotary.sin if rotary else None,
        heads=heads,
        kv_heads=kv_heads,
        positions=positions,
    )


def position_table(positions: Positions, context_length: int, d_model: int) -> Tensor | None:
    """The table [T, d] that a formula gives, or None where none is added or it is learned."""
    return sinusoidal(context_length, d_model) if positions == "sinusoidal" else None


def rotary_table(context_length: int, head_dim: int) -> Rotary:
    """The angles of rotary positions as first published: whole heads, theta 10000, half-split.

    Raises:
        LayerError: if the head width is odd.
    """
    if head_dim % 2:
        raise LayerError(f"heads of an odd width, {head_dim}, cannot be turned pair by pair")
    return rotary_of(inverse_frequencies(10000.0, head_dim), context_length)
