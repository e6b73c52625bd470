"""A model's folder as the Hugging Face hub lays it out -> its true first layer."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from exporters.errors import WeightsError
from jobs.families import OLD_NAMES, UNUSED, Family
from jobs.modelconfig import Model, read_model
from jobs.modelfiles import StoredTensor, open_tensors, tensor_files
from jobs.ropesettings import rope_frequencies
from kernels.errors import LayerError
from kernels.layer import FirstLayer
from kernels.rotary import rotary_of

BLOCK_VALUES = 1 << 24  # of a matrix that are converted at once


def load_checkpoint(folder: Path, *, context_length: int, dtype: torch.dtype) -> FirstLayer:
    """The first layer of the model in a folder, for windows of context_length tokens.

    Only its own tensors are read, and only the files that hold them. Values are those of the
    checkpoint, rounded to dtype; what is computed of several is formed in float64 first.

    Raises:
        WeightsError: if the folder cannot be used: its files, its config.json, its tensors.
    """
    model = read_model(folder, context_length=context_length)
    files = tensor_files(folder)
    names = _names(folder, model, files)
    with open_tensors(folder, files, set(names.values())) as stored:
        tensors = {role: stored[name] for role, name in names.items()}
        _check_shapes(model, tensors)
        try:
            return _layer(model, tensors, context_length, dtype)
        except LayerError as error:
            raise WeightsError(f"--weights {folder}: {error}") from error


def check_checkpoint(folder: Path, *, context_length: int) -> None:
    """Look at the headers of what load_checkpoint would read.

    Raises:
        WeightsError: if a tensor is missing, not understood or of wrong shape.
    """
    model = read_model(folder, context_length=context_length)
    files = tensor_files(folder)
    names = _names(folder, model, files)
    with open_tensors(folder, files, set(names.values())) as stored:
        _check_shapes(model, {role: stored[name] for role, name in names.items()})


def _layer(
    model: Model, tensors: Mapping[str, StoredTensor], context_length: int, dtype: torch.dtype
) -> FirstLayer:
    family = model.family
    values = {
        role: None if role not in tensors else _read(tensors[role], dtype)
        for role in ("norm.weight", "norm.bias", "q_norm", "k_norm")
    }
    q, k, v = _projections(model, tensors, "weight", dtype)
    q_bias, k_bias, v_bias = (
        _projections(model, tensors, "bias", dtype) if model.biases else (None, None, None)
    )
    rotary = None
    if model.rope is not None:
        made = rope_frequencies(model.rope, context_length)
        rotary = rotary_of(made.inverse, context_length, made.factor, model.interleaved)
    return FirstLayer(
        embedding=_embedding(tensors, dtype),
        q_weight=q,
        k_weight=k,
        v_weight=v,
        q_bias=q_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        position=_positions(model, tensors, context_length, dtype),
        norm_weight=values["norm.weight"],
        norm_bias=values["norm.bias"],
        q_norm=values["q_norm"],
        k_norm=values["k_norm"],
        rotary_cos=None if rotary is None else rotary.cos,
        rotary_sin=None if rotary is None else rotary.sin,
        heads=model.heads,
        kv_heads=model.kv_heads,
        norm=model.norm,
        positions=model.positions,
        eps=model.eps,
        embedding_scale=model.d_model**0.5 if family.embedding_scaled else 1.0,
        norm_offset=family.norm_offset,
        rotary_interleaved=model.interleaved,
    )


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Role of a tensor that the layer needs -> the shape that config.json gives it."""
    family, d = model.family, model.d_model
    q, kv = model.q_width, model.kv_width
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (model.vocabulary_size, model.embedding_width)
    }
    if model.embedding_width != d:
        shapes["embedding_projection"] = (d, model.embedding_width)
    widths = (q, kv, kv) if family.fused == "none" else (q + 2 * kv,)
    for name, width in zip(family.projections, widths, strict=True):
        shapes[f"{name}.weight"] = (d, width) if family.fused == "columns" else (width, d)
        if model.biases:
            shapes[f"{name}.bias"] = (width,)
    if model.norm_affine:
        shapes["norm.weight"] = (d,)
        if family.norm_biased:
            shapes["norm.bias"] = (d,)
    if model.qk_norm != "none":
        by_head = model.qk_norm == "head"
        shapes["q_norm"] = (model.head_dim if by_head else q,)
        shapes["k_norm"] = (model.head_dim if by_head else kv,)
    if family.position:
        shapes["position"] = (model.max_positions + model.position_offset, d)
    if family.token_type:
        shapes["token_type"] = (0, d)
    return shapes


def _base_name(family: Family, role: str) -> str:
    """What the family calls a tensor, without a prefix."""
    names = {
        "embedding": family.embedding,
        "embedding_projection": family.embedding_projection,
        "position": family.position,
        "token_type": family.token_type,
        "norm.weight": f"{family.norm_name}.weight",
        "norm.bias": f"{family.norm_name}.bias",
        "q_norm": f"{family.attention}q_norm.weight",
        "k_norm": f"{family.attention}k_norm.weight",
    }
    return names.get(role, family.attention + role)


def _names(folder: Path, model: Model, files: Mapping[str, str]) -> dict[str, str]:
    """Role -> name of the tensor in the checkpoint.

    Raises:
        WeightsError: if one is missing, or the first attention has one that is not known.
    """
    family = model.family
    prefix = next((p for p in family.prefixes if p + family.embedding in files), None)
    if prefix is None:
        tried = ", ".join(p + family.embedding for p in family.prefixes)
        raise WeightsError(f"--weights {folder} lacks the embedding of {model.model_type}: {tried}")
    names = {}
    for role in _shapes(model):
        name = prefix + _base_name(family, role)
        for new, old in OLD_NAMES.items():
            if name not in files and name.endswith(new):
                name = name.removesuffix(new) + old
        if name not in files:
            raise WeightsError(
                f"--weights {folder} lacks the tensor {prefix + _base_name(family, role)}, "
                f"which {model.model_type} needs"
            )
        names[role] = name
    others = sorted(files.keys() - set(names.values()))
    attention, norm = prefix + family.attention, f"{prefix}{family.norm_name}."
    unknown = [
        name
        for name in others
        if name.startswith(attention) and not UNUSED.fullmatch(name.removeprefix(attention))
    ]
    if model.norm == family.norm:  # else it stands after the attention
        unknown += [name for name in others if name.startswith(norm)]
    if unknown:
        raise WeightsError(
            f"--weights {folder} holds {unknown[0]}, which is not understood for "
            f"{model.model_type}: q, k and v might hang on it"
        )
    return names


def _check_shapes(model: Model, tensors: Mapping[str, StoredTensor]) -> None:
    for role, shape in _shapes(model).items():
        found = tensors[role].shape
        if role == "token_type":  # of which row 0 alone is used
            shape = (max(1, found[0]) if found else 1, *shape[1:])
        if found != shape:
            raise WeightsError(
                f"{tensors[role].name} has shape {list(found)}, but config.json needs {list(shape)}"
            )


def _exact(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor in their own dtype.

    Raises:
        WeightsError: if a value is NaN or infinite.
    """
    tensor: Tensor = stored.rows[start:stop]
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"{stored.name} holds NaN or infinity")
    return tensor


def _read(
    stored: StoredTensor,
    dtype: torch.dtype,
    change: Callable[[Tensor], Tensor] = lambda rows: rows,
    width: int | None = None,
) -> Tensor:
    """A tensor of its own memory, rounded to dtype, converted block by block.

    `change` is done to rows before they are rounded, and makes them `width` values wide.
    """
    count, inner = stored.shape[0], stored.shape[1:]
    out = torch.empty(count, *(inner if width is None else (width,)), dtype=dtype)
    step = max(1, BLOCK_VALUES // max(1, out[:1].numel()))
    for start in range(0, count, step):
        stop = min(start + step, count)
        out[start:stop] = rounded(change(_exact(stored, start, stop)), dtype)
        _check_range(stored, out[start:stop])
    return out


def _check_range(stored: StoredTensor, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise WeightsError(
            f"{stored.name} has values beyond float16's largest, 65504; use bfloat16 or float32"
            if values.dtype == torch.float16
            else f"{stored.name} has values beyond {values.dtype}'s largest; use float32"
        )


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in dtype, rounded once; torch rounds float64 to float32 on its way to 16 bits."""
    if values.dtype != torch.float64 or dtype.itemsize != 2:
        return values.to(dtype)
    # Cut to float32, its last bit set where that lost something, no value looks like a tie.
    narrow = values.float()
    bits = narrow.view(torch.int32)
    bits = bits - (narrow.double().abs() > values.abs()).int()
    lost = narrow.double() != values
    return torch.where(lost, bits | 1, bits).view(torch.float32).to(dtype)


def _embedding(tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> Tensor:
    """E [V, d]; rows that the model projects to its width are projected."""
    if "embedding_projection" not in tensors:
        return _read(tensors["embedding"], dtype)
    projection = tensors["embedding_projection"]
    weight = _exact(projection, 0, projection.shape[0]).double()
    return _read(
        tensors["embedding"], dtype, lambda rows: rows.double() @ weight.t(), projection.shape[0]
    )


def _positions(
    model: Model, tensors: Mapping[str, StoredTensor], context_length: int, dtype: torch.dtype
) -> Tensor | None:
    """P [T, d] from the row of the first token on, with what is added to every token."""
    if "position" not in tensors:
        return None
    offset = model.position_offset
    table = _exact(tensors["position"], offset, offset + context_length).double()
    if "token_type" in tensors:
        table += _exact(tensors["token_type"], 0, 1).double()
    position = rounded(table, dtype)
    _check_range(tensors["position"], position)
    return position


def _projections(
    model: Model, tensors: Mapping[str, StoredTensor], kind: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights ([H*Dh, d] and twice [Hk*Dh, d]) or biases of q, k and v."""
    family = model.family
    widths = [model.q_width, model.kv_width, model.kv_width]
    stored = [tensors[f"{name}.{kind}"] for name in family.projections]
    if family.fused == "none":
        q, k, v = (_exact(one, 0, one.shape[0]) for one in stored)
    else:
        whole = _exact(stored[0], 0, stored[0].shape[0])
        if family.fused == "heads":
            # Head by head stand its rows of q, of k and of v.
            parts = whole.view(model.heads, 3, model.head_dim, *whole.shape[1:])
            q, k, v = (parts[:, i].flatten(0, 1) for i in range(3))
        else:
            rows = whole.t() if family.fused == "columns" and whole.ndim == 2 else whole
            q, k, v = torch.split(rows, widths)
    if family.q_scaled:
        q = q.double() * model.head_dim**-0.5
    out = []
    for part in (q, k, v):
        own = torch.empty(part.shape, dtype=dtype)
        own.copy_(rounded(part, dtype))
        _check_range(stored[0], own)
        out.append(own)
    return out[0], out[1], out[2]
