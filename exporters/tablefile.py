"""tables.safetensors <-> Tables.

token_ids          int32 [U]                    ascending; row i of the tables is for token_ids[i]
token_table        float32 [H + 2 Hk, U, Dh]    A, by head: q's heads, then k's, then v's
position_table     float32 [H + 2 Hk, T, Dh]    B; absent where A is finished

where q and k of a finished A turn by rotary positions:

rotary_cos, rotary_sin              float32 [T, R/2]

and where a norm follows the position:

token_features, position_features   float32 [U, d], [T, d]: s E[t] and P[p]
token_means, position_means         float32 [U], [T]: theirs; only for layernorm
token_lengths, position_lengths     float32 [U], [T]: of what A and B project
weight, constant                    float32 [F, d], [F]: W' and c

The scalars are one JSON object under the metadata key "qkvmill": heads, kv_heads, eps,
rotary_interleaved.
"""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from exporters.bucket import Place
from exporters.errors import DamageError, ExportError
from exporters.files import FileRecord, local_copy
from exporters.safefile import Header, open_tensors, read_header
from exporters.shards import write_tensors
from kernels.rotary import Rotary
from kernels.tables import NormTables, Tables

TABLES = "tables.safetensors"
METADATA_KEY = "qkvmill"
MOST_IDS = 1 << 24  # of any vocabulary; the index from id to row takes 4 bytes for each
NORM_NAMES = tuple(field.name for field in fields(NormTables) if field.name != "eps")


def table_tensors(tables: Tables) -> dict[str, Tensor]:
    """The tensors by their names on disk, on the device where they are."""
    tensors = {"token_ids": tables.token_ids, "token_table": tables.token_table}
    if tables.position_table is not None:
        tensors["position_table"] = tables.position_table
    if tables.rotary is not None:
        tensors |= {"rotary_cos": tables.rotary.cos, "rotary_sin": tables.rotary.sin}
    if tables.norm is not None:
        values = {name: getattr(tables.norm, name) for name in NORM_NAMES}
        tensors |= {name: value for name, value in values.items() if value is not None}
    return tensors


def save_tables(root: Path, name: str, tables: Tables) -> FileRecord:
    """Write tables of any device to root/name.

    Raises:
        ExportError: if the file cannot be written.
    """
    scalars: dict[str, int | float | bool] = {"heads": tables.heads, "kv_heads": tables.kv_heads}
    if tables.norm is not None:
        scalars["eps"] = tables.norm.eps
    if tables.rotary is not None:
        scalars["rotary_interleaved"] = tables.rotary.interleaved
    tensors = {name: tensor.cpu() for name, tensor in table_tensors(tables).items()}
    return write_tensors(root, name, tensors, (METADATA_KEY, json.dumps(scalars, sort_keys=True)))


def load_tables(path: Place) -> Tables:
    """The tables of a file, mapped into memory: pages are read when a row that they hold is used.

    An object is copied for that, and the copy is gone once the tables are.

    Raises:
        ExportError: if the file cannot be read or is not one of tables.
    """
    try:
        header = read_header(path)
        _check_shapes(header)
        heads, kv_heads, eps, interleaved = _scalars(header)
        with local_copy(path) as local, open_tensors(local) as file:
            mapped = {name: file.get_tensor(name) for name in header.tensors}
        # A header of an odd length leaves them where no number may begin.
        tensors = {n: t.clone() if t.data_ptr() % t.itemsize else t for n, t in mapped.items()}
        token_ids = tensors["token_ids"]
        if not bool((token_ids[1:] > token_ids[:-1]).all()) or int(token_ids[0]) < 0:
            raise ValueError("token_ids do not ascend from 0 on")
        if int(token_ids[-1]) >= MOST_IDS:
            raise ValueError(f"token_ids go up to {int(token_ids[-1])}, beyond any vocabulary")
    except OSError as error:
        raise DamageError(f"{path} could not be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise ExportError(f"{path} does not hold tables: {error}") from error
    norm = None
    if "constant" in tensors:
        values = {name: tensors.get(name) for name in NORM_NAMES}
        norm = NormTables(**values, eps=eps)  # type: ignore[arg-type]
    rotary = None
    if "rotary_cos" in tensors:
        rotary = Rotary(tensors["rotary_cos"], tensors["rotary_sin"], interleaved)
    return Tables(
        token_ids=token_ids,
        token_table=tensors["token_table"],
        position_table=tensors.get("position_table"),
        norm=norm,
        rotary=rotary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=tensors["token_table"].shape[2],
    )


def _check_shapes(header: Header) -> None:
    """Raise ValueError or KeyError unless the tensors are those of tables and fit together."""
    found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    heads, rows, head_dim = header.tensors["token_table"].shape
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_ids": ("int32", (rows,)),
        "token_table": ("float32", (heads, rows, head_dim)),
    }
    positions = d = pairs = 1
    if "position_table" in found:
        _, positions, _ = header.tensors["position_table"].shape
        expected["position_table"] = ("float32", (heads, positions, head_dim))
    if "rotary_cos" in found:
        if "position_table" in found or "constant" in found:
            raise ValueError("it has both rotary and added positions")
        positions, pairs = header.tensors["rotary_cos"].shape
        angles = ("float32", (positions, pairs))
        expected |= {"rotary_cos": angles, "rotary_sin": angles}
    if "constant" in found:
        if "position_table" not in found:
            raise ValueError("it has what a norm needs, but no added positions")
        _, d = header.tensors["weight"].shape
        shapes = {
            "token_features": (rows, d),
            "position_features": (positions, d),
            "token_lengths": (rows,),
            "position_lengths": (positions,),
            "weight": (heads * head_dim, d),
            "constant": (heads * head_dim,),
        }
        if "token_means" in found:
            shapes |= {"token_means": (rows,), "position_means": (positions,)}
        expected |= {name: ("float32", shape) for name, shape in shapes.items()}
    if found != expected or 0 in (heads, rows, head_dim, positions, d, pairs):
        raise ValueError("its tensors do not fit together")


def _scalars(header: Header) -> tuple[int, int, float, bool]:
    """heads, kv_heads, eps, which is 0 without a norm, and rotary_interleaved, likewise False."""
    scalars: dict[str, Any] = json.loads(header.metadata[METADATA_KEY])
    heads, kv_heads = scalars["heads"], scalars["kv_heads"]
    eps = scalars["eps"] if "constant" in header.tensors else 0.0
    rotary = "rotary_cos" in header.tensors
    interleaved = scalars["rotary_interleaved"] if rotary else False
    table_heads, _, head_dim = header.tensors["token_table"].shape
    if not all(type(count) is int and count >= 1 for count in (heads, kv_heads)):
        raise ValueError("its heads are no whole numbers above 0")
    if heads % kv_heads or table_heads != heads + 2 * kv_heads:
        raise ValueError(f"its {table_heads} heads are not {heads} and two times {kv_heads}")
    if type(eps) not in (int, float) or not 0 <= eps < math.inf:
        raise ValueError("its eps is no number from 0 on")
    if rotary and 2 * header.tensors["rotary_cos"].shape[1] > head_dim:
        raise ValueError(f"rotary_cos turns more than the {head_dim} values of a head")
    if type(interleaved) is not bool:
        raise ValueError("its rotary_interleaved is neither true nor false")
    return heads, kv_heads, float(eps), interleaved
