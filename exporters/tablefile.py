"""tables.safetensors <-> Tables.

token_ids          int32 [U]        ascending; row i of token_table is for token token_ids[i]
token_table        float32 [U, F]   A
position_table     float32 [T, F]   B; absent where A is finished

and where a norm follows the position:

token_features, position_features   float32 [U, d], [T, d]: s E[t] and P[p]
token_means, position_means         float32 [U], [T]: theirs; only for layernorm
token_lengths, position_lengths     float32 [U], [T]: of what A and B project
weight, constant                    float32 [F, d], [F]: W' and c

The scalars are one JSON object under the metadata key "qkvmill": heads, kv_heads, eps.
"""

import json
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporters.errors import ExportError
from exporters.files import FileRecord
from exporters.safefile import read_header
from exporters.shards import write_tensors
from kernels.tables import NormTables, Tables

TABLES = "tables.safetensors"
METADATA_KEY = "qkvmill"
REQUIRED = ("token_ids", "token_table")
NORM_NAMES = tuple(field.name for field in fields(NormTables) if field.name != "eps")


def table_tensors(tables: Tables) -> dict[str, Tensor]:
    """The tensors by their names on disk, on the device where they are."""
    tensors = {"token_ids": tables.token_ids, "token_table": tables.token_table}
    if tables.position_table is not None:
        tensors["position_table"] = tables.position_table
    if tables.norm is not None:
        values = {name: getattr(tables.norm, name) for name in NORM_NAMES}
        tensors |= {name: value for name, value in values.items() if value is not None}
    return tensors


def save_tables(root: Path, name: str, tables: Tables) -> FileRecord:
    """Write tables of any device to root/name.

    Raises:
        ExportError: if the file cannot be written.
    """
    scalars: dict[str, int | float] = {"heads": tables.heads, "kv_heads": tables.kv_heads}
    if tables.norm is not None:
        scalars["eps"] = tables.norm.eps
    tensors = {name: tensor.cpu() for name, tensor in table_tensors(tables).items()}
    return write_tensors(root, name, tensors, (METADATA_KEY, json.dumps(scalars, sort_keys=True)))


def load_tables(path: Path) -> Tables:
    """The tables of a file, mapped into memory: rows are read when they are used.

    Raises:
        ExportError: if the file cannot be read or is not one of tables.
    """
    try:
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.tensors}
        scalars = json.loads(header.metadata[METADATA_KEY])
        norm = None
        if "constant" in tensors:
            norm = NormTables(
                **{name: tensors.get(name) for name in NORM_NAMES},  # type: ignore[arg-type]
                eps=float(scalars["eps"]),
            )
        heads, kv_heads = int(scalars["heads"]), int(scalars["kv_heads"])
        token_ids, token_table = (tensors[name] for name in REQUIRED)
        total_width = token_table.shape[1]
        shapes_fit = (
            len(token_ids) == len(token_table) > 0
            and total_width % (heads + 2 * kv_heads) == 0
            and bool((token_ids[1:] > token_ids[:-1]).all())
            and int(token_ids[0]) >= 0
        )
        if not shapes_fit:
            raise ValueError("its shapes do not fit together")
    except OSError as error:
        raise ExportError(f"{path} could not be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, IndexError, SafetensorError) as error:
        raise ExportError(f"{path} does not hold tables: {error}") from error
    return Tables(
        token_ids=token_ids,
        token_table=token_table,
        position_table=tensors.get("position_table"),
        norm=norm,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=total_width // (heads + 2 * kv_heads),
    )
