"""weights.safetensors <-> FirstLayer.

Tensors carry the names of kernels.layer.TENSOR_NAMES; what is absent is absent from the function.
The scalars are one JSON object under the metadata key "qkvmill", every key optional:

    {"heads": 12, "kv_heads": 12, "norm": "none" | "layernorm" | "rmsnorm", "eps": 1e-5,
     "norm_offset": 0.0, "positions": "sinusoidal" | "learned" | "rope" | "none",
     "rotary_interleaved": false, "embedding_scale": 1.0}

All tensors are of one dtype but rotary.cos and rotary.sin, which are float32.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from exporters.errors import ExportError, WeightsError
from exporters.files import FileRecord
from exporters.nearest import did_you_mean, nearest
from exporters.safefile import Header, open_tensors, read_header
from exporters.shards import record_of, write_tensors
from kernels.errors import LayerError
from kernels.layer import (
    ANGLES,
    TENSOR_NAMES,
    FirstLayer,
    position_table,
    rotary_table,
)
from kernels.names import Positions

METADATA_KEY = "qkvmill"
REQUIRED = ("embedding.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
SCALARS = ("eps", "norm_offset", "rotary_interleaved", "embedding_scale")
WORDS = {
    "norm": ("none", "layernorm", "rmsnorm"),
    "positions": ("sinusoidal", "learned", "rope", "none"),
}
FLOATS = ("float32", "bfloat16", "float16")
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_layer(root: Path, name: str, layer: FirstLayer) -> FileRecord:
    """Write a layer to root/name in our own names."""
    return write_tensors(root, name, layer.named_tensors(), _metadata(layer))


def layer_record(name: str, layer: FirstLayer) -> FileRecord:
    """The record of the file that save_layer would write."""
    return record_of(name, layer.named_tensors(), _metadata(layer))


def _metadata(layer: FirstLayer) -> tuple[str, str]:
    scalars = {
        "heads": layer.heads,
        "kv_heads": layer.kv_heads,
        "norm": layer.norm,
        "eps": layer.eps,
        "norm_offset": layer.norm_offset,
        "positions": layer.positions,
        "rotary_interleaved": layer.rotary_interleaved,
        "embedding_scale": layer.embedding_scale,
    }
    return METADATA_KEY, json.dumps(scalars, sort_keys=True)


def load_layer(
    path: Path,
    *,
    context_length: int,
    d_model: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    positions: Positions | None = None,
) -> FirstLayer:
    """Read a layer from a safetensors file in our own names, for windows of context_length tokens.

    The numbers that are given must agree with the file; heads must be given where the file's
    metadata does not say them. `positions` overrides the file: "sinusoidal" and "rope" compute
    the table, "none" leaves it out.

    Raises:
        WeightsError: if the file is not safetensors, or its tensors are missing, unknown, of wrong
            shape, not finite, or do not agree with what was asked.
    """
    try:
        header = read_header(path)
        _check_names(path, header)
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in header.tensors}
    except ExportError as error:
        if path.is_file() and _is_pickle(path):
            raise WeightsError(
                f"--weights {path} is a pickle, which can run code when it is opened; "
                "convert it with safetensors.torch.save_file and give that file"
            ) from error
        raise WeightsError(f"--weights {error}; give one .safetensors file") from error
    except WeightsError as error:
        if (path.parent / "config.json").exists():
            raise WeightsError(
                f"{error}; for the model in {path.parent}, give that folder"
            ) from error
        raise
    except SafetensorError as error:
        raise WeightsError(f"--weights {path} could not be opened: {error}") from error
    except FileNotFoundError as error:
        raise WeightsError(
            f"--weights {path} is not there; nothing is downloaded, so give a file, or the folder "
            "of a model on this machine"
        ) from error
    except OSError as error:
        raise WeightsError(f"--weights {path} could not be read: {error.strerror}") from error
    _check_finite(path, tensors)

    scalars = _scalars(path, header)
    heads = _agree(path, "heads", scalars.get("heads"), heads)
    if heads is None:
        raise WeightsError(f"--weights {path} does not say how many heads it has; give --heads")
    stated = _agree(path, "kv-heads", scalars.get("kv_heads"), kv_heads)
    _agree(path, "d-model", tensors["embedding.weight"].shape[-1], d_model)
    if "norm.weight" in tensors and scalars.get("norm", "none") == "none":
        raise WeightsError(
            f"--weights {path} has norm.weight, but its metadata does not say whether the norm is "
            f'layernorm or rmsnorm; store it as {METADATA_KEY} = {{"norm": ...}}'
        )
    fields = {field: tensors.get(name) for field, name in TENSOR_NAMES.items()}
    try:
        kind = _place(path, fields, scalars.get("positions"), positions, context_length, heads)
        return FirstLayer(
            **fields,  # type: ignore[arg-type]
            heads=heads,
            kv_heads=stated or heads,
            norm=scalars.get("norm", "none"),
            positions=kind,
            **{name: scalars[name] for name in SCALARS if name in scalars},
        )
    except LayerError as error:
        grouped = stated is None and "k_proj.weight has" in str(error)
        hint = "; if its heads are grouped, give --kv-heads" if grouped else ""
        raise WeightsError(f"--weights {path}: {error}{hint}") from error


def _place(
    path: Path,
    fields: dict[str, Tensor | None],
    stated: Positions | None,
    asked: Positions | None,
    context_length: int,
    heads: int,
) -> Positions:
    """The kind of positions; `fields` then hold its tables, for windows of context_length tokens.

    Args:
        stated: by the file's metadata.
        asked: instead of the file's own.

    Raises:
        WeightsError: if there is no such table, or it has too few positions.
        LayerError: if heads cannot turn.
    """
    held: Positions = "none" if fields["position"] is None else "learned"
    stored = stated or ("rope" if fields["rotary_cos"] is not None else held)
    if stored == "none" and held != "none":
        raise WeightsError(f"--weights {path} has position.weight, but its metadata says none")
    kind = asked or stored
    if kind != stored:
        fields |= dict.fromkeys(("position", *ANGLES))
    if kind == "learned" and fields["position"] is None:
        raise WeightsError(f"--weights {path} has no position.weight, so none was learned")
    if kind == "sinusoidal" and fields["position"] is None:
        d_model = fields["embedding"].shape[-1]  # type: ignore[union-attr]
        fields["position"] = position_table(kind, context_length, d_model)
    if kind == "rope" and fields["rotary_cos"] is None and fields["rotary_sin"] is None:
        rotary = rotary_table(context_length, len(fields["q_weight"]) // heads)  # type: ignore[arg-type]
        fields |= {"rotary_cos": rotary.cos, "rotary_sin": rotary.sin}
    for field in ("position", *ANGLES):
        table = fields[field]
        if table is not None and len(table) < context_length:
            raise WeightsError(
                f"--weights {path} has positions for {len(table)} tokens, fewer than the "
                f"context length {context_length}; give --context-length {len(table)} or less"
            )
        # A copy, since angles are not rounded, which would make one.
        fields[field] = None if table is None else table[:context_length].clone()
    return kind


def _is_pickle(path: Path) -> bool:
    """Whether a file that is not safetensors is a pickle, by its name or its first bytes."""
    if path.suffix in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLE_STARTS)


def _check_names(path: Path, header: Header) -> None:
    known = set(TENSOR_NAMES.values())
    for name in REQUIRED:
        if name not in header.tensors:
            near = nearest(name, header.tensors.keys() - known)
            hint = "" if near is None else f"; is it the one named {near!r}?"
            raise WeightsError(f"--weights {path} lacks the tensor {name}{hint}")
    for name, entry in header.tensors.items():
        if name not in known:
            names = ", ".join(sorted(known))
            raise WeightsError(
                f"--weights {path} holds {name!r}, which is none of {names}"
                f"{did_you_mean(name, known)}"
            )
        if entry.dtype not in FLOATS:
            raise WeightsError(f"--weights {path}: {name} is {entry.dtype}, not one of {FLOATS}")
    for name in (*REQUIRED, "position.weight", "rotary.cos", "rotary.sin"):
        shape = header.tensors[name].shape if name in header.tensors else (1, 1)
        # A width of a tensor without rows is no size that its file bears out.
        if len(shape) != 2 or 0 in shape:
            raise WeightsError(f"--weights {path}: {name} is not a matrix with rows: {list(shape)}")
    angles = {TENSOR_NAMES[field] for field in ANGLES}
    for name in angles & header.tensors.keys():
        if header.tensors[name].dtype != "float32":
            raise WeightsError(f"--weights {path}: {name} is not float32")
    # Checked here already, since angles are made for as many rows as q_proj.weight has.
    d_model, inner = (header.tensors[name].shape[1] for name in REQUIRED[:2])
    if inner != d_model:
        raise WeightsError(
            f"--weights {path}: q_proj.weight has {inner} columns, but embedding.weight {d_model}"
        )
    dtypes = {entry.dtype for name, entry in header.tensors.items() if name not in angles}
    if len(dtypes) > 1:
        raise WeightsError(f"--weights {path} mixes the dtypes {', '.join(sorted(dtypes))}")


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"--weights {path}: {name} holds NaN or infinity")


def _scalars(path: Path, header: Header) -> dict[str, Any]:
    """The scalars of the metadata, each of the right type."""
    checks = {
        "heads": _is_count,
        "kv_heads": _is_count,
        "norm": lambda value: value in WORDS["norm"],
        "positions": lambda value: value in WORDS["positions"],
        "eps": lambda value: _is_number(value) and value >= 0,
        "norm_offset": _is_number,
        "rotary_interleaved": lambda value: isinstance(value, bool),
        "embedding_scale": _is_number,
    }
    try:
        scalars = json.loads(header.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"--weights {path}: its metadata {METADATA_KEY} is not JSON: {error}"
        ) from error
    if not isinstance(scalars, dict):
        raise WeightsError(f"--weights {path}: its metadata {METADATA_KEY} is not a JSON object")
    for key, value in scalars.items():
        if key not in checks:
            raise WeightsError(
                f"--weights {path}: its metadata {METADATA_KEY} says {key} = {value!r}, but is to "
                f"say nothing but {', '.join(checks)}{did_you_mean(key, checks)}"
            )
        if not checks[key](value):
            raise WeightsError(
                f"--weights {path}: its metadata {METADATA_KEY} says {key} = {value!r}, "
                f"which is not understood{did_you_mean(str(value), WORDS.get(key, ()))}"
            )
    return scalars


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # A whole number of JSON may be larger than any float.
    return abs(value) < 1e300


def _agree(path: Path, option: str, stored: int | None, asked: int | None) -> int | None:
    """What the file and the options say of one number; an error where they differ."""
    if stored is not None and asked is not None and stored != asked:
        raise WeightsError(
            f"--{option} {asked} does not fit --weights {path}, which has {stored}; leave it out"
        )
    return asked if stored is None else stored
