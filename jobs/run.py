"""The life of a job: corpus -> tokens -> windows -> one fused kernel -> shards -> manifest."""

import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from exporters.files import write_text
from exporters.folder import (
    WEIGHTS,
    check_claim,
    check_space,
    claimed,
    readable,
    release,
)
from exporters.layerfile import save_layer
from exporters.manifest import RUN, FileEntry, Manifest, commit
from exporters.tokens import TokenPart, TokenStream, TokenWriter
from jobs.compute import WindowStage, describe, write_shards
from jobs.config import JobConfig
from jobs.corpus import Corpus, find_files
from jobs.layers import check_ids, describe_layer, layer_shape, load_weights, make_layer
from jobs.outputs import shard_tensors, window_bytes, windows_per_shard
from jobs.progress import Reporter
from jobs.tokenise import TokenTotals, tokenise
from jobs.tokenizer import Tokenizer, load_tokenizer
from jobs.windows import WindowPlan, plan_random, plan_sequential
from kernels.dispatch import Backend, choose
from kernels.layer import DTYPES, FirstLayer, pack

HEADROOM = 16 << 20  # bytes for headers, the manifest and the folders


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished job did, for people and for --json."""

    out: str
    documents: int
    tokens: int
    windows: int
    dropped_tokens: int
    skipped_files: int
    replaced_sequences: int
    shards: int
    bytes: int
    device: str | None
    method: str | None
    kernel: str | None
    reason: str | None
    seconds: dict[str, float]


def run(config: JobConfig, reporter: Reporter) -> Summary:
    """Do the whole job and commit the export at config.out.

    Raises:
        QkvmillError: if the options, the corpus, the weights or the disk prevent it; what stands
            at config.out is then what stood there before, or visibly unfinished.
    """
    started = datetime.now(UTC)
    corpus = find_files(config.corpus)
    tokenizer = load_tokenizer(config.tokenizer)
    backend = choose_backend(config, reporter)
    loaded = load_weights(config)
    if found := check_claim(config.out, overwrite=config.overwrite):
        reporter.note(f"{config.out} holds {found}: starting over")
    check_space(config.out, bytes_known_before(config, loaded, tokenizer) + HEADROOM)

    with claimed(config.out, overwrite=config.overwrite) as lock:
        writer = TokenWriter(config.out)
        totals = tokenise(config, corpus, tokenizer, writer, reporter)
        parts = writer.close()
        windows = plan_windows(config, totals.tokens)
        shape = layer_shape(config, loaded, tokenizer, totals.largest_id)
        plans = shard_tensors(config, shape)
        layer_bytes = 0
        if shape is not None:
            check_ids(config, shape, totals.largest_id)
            layer_bytes = shape.bytes
        check_space(config.out, window_bytes(plans) * windows.count + layer_bytes + HEADROOM)
    _say_what_differs(config, windows, window_bytes(plans), reporter)

    entries = [_token_entry(part) for part in parts]
    layer = None
    if shape is not None:
        layer = loaded or make_layer(config, tokenizer, totals.largest_id)
        entries.append(_write_layer(config.out, layer))
    packed = pack(layer, backend.device) if layer and backend else None
    stage = WindowStage(
        plans=plans,
        windows=windows,
        stream=TokenStream(config.out, parts),
        layer=packed,
        backend=backend,
        layout=config.layout,
    )
    per_shard = windows_per_shard(plans, config.shard_size, config.batch_size)
    entries += write_shards(config.out, stage, per_shard, reporter)

    compute = backend.record(packed) if backend and packed else None
    manifest = _manifest(config, corpus, tokenizer, totals, windows, layer, compute, entries)
    _write_run(config.out, started, reporter)
    commit(config.out, manifest)
    release(config.out, lock)
    return _summary(config, manifest, backend, reporter)


def choose_backend(config: JobConfig, reporter: Reporter) -> Backend | None:
    """The backend of a job, said aloud with its reason; None where nothing is computed."""
    if not config.needs_layer:
        return None
    backend = choose(config.device, DTYPES[config.dtype], tf32=config.tf32)
    reporter.note(backend.sentence())
    return backend


def bytes_known_before(config: JobConfig, loaded: FirstLayer | None, tokenizer: Tokenizer) -> int:
    """The bytes of output that are certain before the corpus is read."""
    shape = layer_shape(config, loaded, tokenizer, None)
    if config.sampling == "sequential":
        return shape.bytes if shape else 0
    windows = config.batch_size * config.random_batches
    return windows * window_bytes(shard_tensors(config, shape)) + (shape.bytes if shape else 0)


def plan_windows(config: JobConfig, tokens: int) -> WindowPlan:
    """The windows that a stream of so many tokens gives.

    Raises:
        CorpusError: if the stream is shorter than a window.
    """
    if config.sampling == "random":
        return plan_random(
            tokens, config.context_length, config.batch_size, config.random_batches, config.seed
        )
    most = None if config.batches is None else config.batches * config.batch_size
    return plan_sequential(tokens, config.context_length, config.window_stride, most)


def _say_what_differs(
    config: JobConfig, windows: WindowPlan, bytes_per_window: int, reporter: Reporter
) -> None:
    """Say where the outcome is not what the options may have led to expect."""
    if bytes_per_window > config.shard_size:
        reporter.note(
            f"a window takes {readable(bytes_per_window)}, more than --shard-size: "
            "each shard holds one window"
        )
    if config.batches is not None and windows.count < config.batches * config.batch_size:
        reporter.note(
            f"the corpus gives {windows.count} windows, fewer than --batches {config.batches} "
            f"of {config.batch_size}"
        )


def _token_entry(part: TokenPart) -> FileEntry:
    return FileEntry(
        name=part.file.name,
        kind="tokens",
        bytes=part.file.bytes,
        sha256=part.file.sha256,
        first=part.first_token,
        count=part.tokens,
        tensors={
            "input_ids": {"dtype": "int32", "shape": [part.tokens]},
            "document_starts": {"dtype": "int64", "shape": [part.documents]},
        },
    )


def _write_layer(root: Path, layer: FirstLayer) -> FileEntry:
    record = save_layer(root, WEIGHTS, layer)
    return FileEntry(
        name=record.name,
        kind="weights",
        bytes=record.bytes,
        sha256=record.sha256,
        first=0,
        count=0,
        tensors=describe(layer.named_tensors()),
    )


def _manifest(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    totals: TokenTotals,
    windows: WindowPlan,
    layer: FirstLayer | None,
    compute: dict[str, Any] | None,
    entries: list[FileEntry],
) -> Manifest:
    return Manifest(
        job=config.record(),
        software=_versions(),
        corpus={
            "files": list(totals.files),
            "bytes": sum(file["bytes"] for file in totals.files),
            "skipped_files": corpus.skipped_files,
            "replaced_sequences": totals.replaced_sequences,
        },
        tokenizer={
            "name": tokenizer.name,
            "vocabulary_sha256": tokenizer.vocabulary_sha256,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text": tokenizer.end_of_text,
        },
        tokens={
            "count": totals.tokens,
            "documents": totals.documents,
            "separators": totals.separators,
            "largest_id": totals.largest_id,
        },
        windows={
            "count": windows.count,
            "context_length": windows.context_length,
            "dropped_tokens": windows.dropped_tokens,
        },
        layer=describe_layer(config, layer) if layer else None,
        compute=compute,
        files=tuple(entries),
    )


def _versions() -> dict[str, str | None]:
    """Versions of everything that can shape bytes; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for name in ("qkvmill", "torch", "triton", "tiktoken", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _write_run(root: Path, started: datetime, reporter: Reporter) -> None:
    """Write run.json: all that may differ between two runs of the same job."""
    finished = datetime.now(UTC)
    document: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in reporter.seconds.items()},
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    write_text(root, RUN, json.dumps(document, indent=1) + "\n")


def _summary(
    config: JobConfig, manifest: Manifest, backend: Backend | None, reporter: Reporter
) -> Summary:
    return Summary(
        out=str(config.out),
        documents=manifest.tokens["documents"],
        tokens=manifest.tokens["count"],
        windows=manifest.windows["count"],
        dropped_tokens=manifest.windows["dropped_tokens"],
        skipped_files=manifest.corpus["skipped_files"],
        replaced_sequences=manifest.corpus["replaced_sequences"],
        shards=len(manifest.of_kind("windows")),
        bytes=sum(entry.bytes for entry in manifest.files),
        device=str(backend.device) if backend else None,
        method=backend.method if backend else None,
        kernel=backend.kernel if backend else None,
        reason=backend.reason if backend else None,
        seconds={name: round(value, 3) for name, value in reporter.seconds.items()},
    )
