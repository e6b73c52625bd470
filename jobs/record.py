"""What a job writes about itself: the manifest, run.json, and the summary that people see."""

import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from exporters.bucket import Place
from exporters.files import write_text
from exporters.manifest import RUN, FileEntry, Manifest
from exporters.recipe import recipe
from exporters.windows import WindowPlan
from jobs.config import JobConfig
from jobs.done import TokenTotals
from jobs.fingerprint import tokenizer_record
from jobs.inputs.files import Corpus
from jobs.parameters import Parameters
from jobs.progress import Reporter
from jobs.timings import Timing
from jobs.tokenizer import Tokenizer
from jobs.versions import versions


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished job did, for people and for --json."""

    out: str
    artifact: str
    documents: int
    tokens: int
    distinct_tokens: int
    windows: int
    boundaries: str
    tail: str
    padded_windows: int
    padded_places: int
    dropped_tokens: int
    short_documents: int
    skipped_files: int
    replaced_sequences: int
    bad_records: int
    shards: int
    bytes: int
    device: str | None
    kernel: str | None
    reason: str | None
    method: str | None
    method_reason: str | None
    seconds: dict[str, float]
    stages: tuple[Timing, ...]


def summary(out: Place, manifest: Manifest, reporter: Reporter) -> Summary:
    """The summary of a committed export."""
    compute = manifest.compute or {}
    return Summary(
        out=str(out),
        artifact=manifest.job["artifact"],
        documents=manifest.tokens["documents"],
        tokens=manifest.tokens["count"],
        distinct_tokens=manifest.tokens["distinct"],
        windows=manifest.windows["count"],
        boundaries=manifest.windows["boundaries"],
        tail=manifest.windows["tail"],
        padded_windows=manifest.windows["padded_windows"],
        padded_places=manifest.windows["padded_places"],
        dropped_tokens=manifest.windows["dropped_tokens"],
        short_documents=manifest.windows["short_documents"],
        skipped_files=manifest.corpus["skipped_files"],
        replaced_sequences=manifest.corpus["replaced_sequences"],
        bad_records=manifest.corpus["bad_records"],
        shards=0 if manifest.compact else len(manifest.of_kind("windows")),
        bytes=sum(entry.bytes for entry in manifest.files),
        device=compute.get("device"),
        kernel=compute.get("kernel"),
        reason=compute.get("reason"),
        method=compute.get("method"),
        method_reason=compute.get("method_reason"),
        seconds={name: round(value, 3) for name, value in reporter.seconds.items()},
        stages=reporter.timings(),
    )


def manifest_of(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    totals: TokenTotals,
    windows: WindowPlan,
    parameters: Parameters | None,
    entries: list[FileEntry],
) -> Manifest:
    """The manifest of a job that has written its files."""
    manifest = Manifest(
        job=config.record(),
        software=versions(tokenizer.library),
        corpus={
            "files": list(totals.files),
            "bytes": sum(file["bytes"] for file in totals.files),
            "skipped_files": corpus.skipped_files,
            "replaced_sequences": totals.replaced_sequences,
            "bad_records": totals.bad_records,
            "listed": list(totals.listed),
        },
        tokenizer=tokenizer_record(tokenizer),
        tokens={
            "count": totals.tokens,
            "documents": totals.documents,
            "separators": totals.separators,
            "largest_id": totals.largest_id,
            "distinct": len(totals.seen),
        },
        windows={
            "count": windows.count,
            "context_length": windows.context_length,
            "stride": windows.stride,
            "boundaries": config.boundaries,
            "tail": config.tail,
            "padded_windows": windows.padded_windows,
            "padded_places": windows.padded_places,
            "dropped_tokens": windows.dropped_tokens,
            "short_documents": windows.short_documents,
        },
        layer=parameters.described if parameters else None,
        compute=parameters.compute if parameters else None,
        expand=None,
        files=tuple(entries),
    )
    return replace(manifest, expand=recipe(manifest)) if manifest.compact else manifest


def write_run(root: Place, started: datetime, reporter: Reporter) -> None:
    """Write run.json: all that may differ between two runs of the same job."""
    finished = datetime.now(UTC)
    document: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in reporter.seconds.items()},
        "stages": [asdict(stage) for stage in reporter.timings()],
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "notes": reporter.notes,
    }
    write_text(root, RUN, json.dumps(document, indent=1) + "\n")
