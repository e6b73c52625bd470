"""The layer and table stages: what q, k and v are computed from, made once and stored."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exporters.errors import ExportError
from exporters.files import FileRecord, move, record_of_bytes, sha256_of, write_text
from exporters.folder import WEIGHTS, WORK
from exporters.layerfile import layer_record, save_layer
from exporters.manifest import FileEntry
from exporters.tablefile import TABLES, load_tables, save_tables, table_tensors
from jobs.compute import entry_of, shapes
from jobs.config import JobConfig
from jobs.layers import describe_layer
from jobs.progress import Reporter
from jobs.versions import versions
from kernels.dispatch import Backend
from kernels.layer import FirstLayer, PackedLayer, pack
from kernels.method import Method
from kernels.tables import BUILD_ROWS, Tables, build

KEPT = f"{WORK}/{TABLES}"
KEPT_RECORD = f"{WORK}/tables.json"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What windows are computed from, on the device that computes, and what is stored of it."""

    layer: PackedLayer | None  # for x and y, and for q, k and v by method direct
    tables: Tables | None  # for q, k and v by method tables
    described: dict[str, Any]  # the manifest's section `layer`
    compute: dict[str, Any]  # the manifest's section `compute`
    entries: tuple[FileEntry, ...]


def make_parameters(
    config: JobConfig,
    layer: FirstLayer,
    token_ids: Tensor,
    method: Method | None,
    backend: Backend,
    reporter: Reporter,
) -> Parameters:
    """Store the layer and, for method tables, build the tables of token_ids, int32 ascending.

    Raises:
        ExportError: if a file cannot be written.
    """
    entries = []
    if config.save_weights:
        weights = save_layer(config.out, WEIGHTS, layer)
        entries.append(entry_of(weights, "weights", shapes(layer.named_tensors())))
    else:
        weights = layer_record(WEIGHTS, layer)
    tables = packed = None
    if method is not None:
        reporter.note(f"method {method.name}: {method.reason}")
    if method is not None and method.name == "tables":
        tables, record = make_tables(
            config.out, layer, weights.sha256, token_ids, backend, reporter
        )
        if config.artifact == "compact":
            move(config.out, KEPT, TABLES)
            record = FileRecord(TABLES, record.bytes, record.sha256)
            entries.append(entry_of(record, "tables", shapes(table_tensors(tables))))
    if tables is None or "features" in config.export:
        packed = pack(layer, backend.device)
    return Parameters(
        layer=packed,
        tables=tables,
        described=describe_layer(config, layer, weights.sha256),
        compute=backend.record(method, packed, tables),
        entries=tuple(entries),
    )


def make_tables(
    root: Path,
    layer: FirstLayer,
    weights_sha256: str,
    token_ids: Tensor,
    backend: Backend,
    reporter: Reporter,
) -> tuple[Tables, FileRecord]:
    """The tables on the device that combines, and the record of their file, root/KEPT.

    Tables that an unfinished run left are mapped into memory, if they are of the same layer, tokens
    and software and their bytes are as they were written.
    """
    shaped_by = {
        "weights_sha256": weights_sha256,
        "token_ids_sha256": record_of_bytes("", token_ids.numpy().tobytes()).sha256,
        "build_rows": BUILD_ROWS,
        "software": versions(),
        "device": backend.device.type,
        **backend.place,
    }
    record = _kept(root, shaped_by)
    if record is not None:
        reporter.note(f"tables are taken from {root / KEPT}, which an unfinished run left")
        return load_tables(root / KEPT).on(backend.device), record
    rows = len(token_ids) + (0 if layer.position is None else len(layer.position))
    with reporter.stage("build", rows, "rows of tables") as advance:
        tables = build(layer, token_ids, backend.device, advance)
        record = save_tables(root, KEPT, tables)
        kept = {"shaped_by": shaped_by, "bytes": record.bytes, "sha256": record.sha256}
        write_text(root, KEPT_RECORD, json.dumps(kept, indent=1) + "\n")
    return tables, record


def kept_bytes(root: Path) -> int:
    """Bytes of the tables that an unfinished run left, which new ones take the place of."""
    path = root / KEPT
    return path.stat().st_size if path.is_file() else 0


def _kept(root: Path, shaped_by: dict[str, Any]) -> FileRecord | None:
    """The record of the tables that an unfinished run left; None where they will not do."""
    try:
        kept = json.loads((root / KEPT_RECORD).read_text("utf-8"))
        record = FileRecord(KEPT, kept["bytes"], kept["sha256"])
        if kept["shaped_by"] != shaped_by or sha256_of(root / KEPT) != record.sha256:
            return None
        load_tables(root / KEPT)
    except (OSError, ValueError, KeyError, TypeError, ExportError):
        return None
    return record
