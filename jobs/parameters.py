"""The layer and table stages: what q, k and v are computed from, made once and stored."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exporters.folder import Work
from exporters.layerfile import layer_record, save_layer
from exporters.manifest import FileEntry
from exporters.strays import WEIGHTS, WORK
from exporters.tablefile import TABLES, load_tables, save_tables, table_tensors
from jobs.config import JobConfig
from jobs.engine import Build
from jobs.layers import describe_layer
from jobs.modelconfig import Model
from jobs.progress import Reporter
from jobs.shards import entry_of, shapes
from kernels.dispatch import Backend
from kernels.layer import FirstLayer
from kernels.method import Method
from kernels.packed import PackedLayer, pack
from kernels.tables import Tables, build

BESIDE = f"{WORK}/{TABLES}"  # of a full export, which has no use for tables once it is finished


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What windows are computed from, on the device that computes, and what is stored of it."""

    layer: PackedLayer | None  # for x and y, and for q, k and v by method direct
    tables: Tables | None  # for q, k and v by method tables
    described: dict[str, Any]  # the manifest's section `layer`
    compute: dict[str, Any]  # the manifest's section `compute`
    entries: tuple[FileEntry, ...]


def make_parameters(
    work: Work,
    config: JobConfig,
    model: Model | None,
    layer: FirstLayer,
    token_ids: Tensor,
    method: Method | None,
    backend: Backend,
    reporter: Reporter,
    build: Build = build,
) -> Parameters:
    """Store the layer and, for method tables, build the tables of token_ids, int32 ascending.

    Raises:
        ExportError: if a file cannot be written.
    """
    entries = []
    if config.save_weights:
        weights = _stored_layer(work, layer, reporter)
        entries.append(weights)
        weights_sha256 = weights.sha256
    else:
        with reporter.stage("weights", 1, "file") as advance:
            weights_sha256 = layer_record(WEIGHTS, layer).sha256
            advance(1)
    tables = packed = None
    if method is not None:
        reporter.note(f"method {method.name}: {method.reason}")
    if method is not None and method.name == "tables":
        compact = config.artifact == "compact"
        name = TABLES if compact else BESIDE
        tables = make_tables(work, name, layer, token_ids, backend, reporter, build)
        if compact:
            entries.append(work.journal.files[name])
    if tables is None or "features" in config.export:
        packed = pack(layer, backend.device)
    return Parameters(
        layer=packed,
        tables=tables,
        described=describe_layer(config, model, layer, weights_sha256),
        compute=backend.record(method, packed, tables),
        entries=tuple(entries),
    )


def make_tables(
    work: Work,
    name: str,
    layer: FirstLayer,
    token_ids: Tensor,
    backend: Backend,
    reporter: Reporter,
    build: Build = build,
) -> Tables:
    """The tables on the device that combines, stored at work.root/name.

    Those that an unfinished run stored are mapped into memory.
    """
    if work.kept(name) is not None:
        return load_tables(work.root / name).on(backend.device)
    rows = len(token_ids) + (0 if layer.position is None else len(layer.position))
    with reporter.stage("build", rows, "rows of tables") as advance:
        tables = build(layer, token_ids, backend.device, advance)
        record = save_tables(work.root, name, tables)
    work.journal.add_file(entry_of(record, "tables", shapes(table_tensors(tables))))
    return tables


def _stored_layer(work: Work, layer: FirstLayer, reporter: Reporter) -> FileEntry:
    """The entry of weights.safetensors, which is written unless it is there already."""
    if kept := work.kept(WEIGHTS):
        return kept
    with reporter.stage("weights", 1, "file") as stage:
        record = save_layer(work.root, WEIGHTS, layer)
        stage.add(bytes=record.bytes)
        stage(1)
    entry = entry_of(record, "weights", shapes(layer.named_tensors()))
    work.journal.add_file(entry)
    return entry
