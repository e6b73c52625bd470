"""compact -> full: the windows that the tables stand for, as shards."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from exporters.contents import exported_tensors, window_bytes
from exporters.errors import ExportError
from exporters.files import copy, sha256_of
from exporters.folder import check_claim, check_space, claimed, release
from exporters.manifest import (
    MANIFEST,
    FileEntry,
    commit,
    garbled_is_damaged,
    read_manifest,
)
from exporters.reading import open_source
from jobs.compute import write_shards
from jobs.outputs import windows_per_shard
from jobs.progress import Reporter
from jobs.record import Summary, summary, write_run
from jobs.run import HEADROOM
from jobs.versions import versions
from kernels.dispatch import choose
from kernels.layer import DTYPES
from kernels.method import Method


def expand(source: Path, out: Path, *, device: str, overwrite: bool, reporter: Reporter) -> Summary:
    """Write the compact export at source as a full one at out.

    The bytes are those of `run --artifact full --method tables` with the options of the compact
    export, on the same kind of machine.

    Raises:
        QkvmillError: if source is no compact export or is damaged, or out cannot be written.
    """
    started = datetime.now(UTC)
    manifest = read_manifest(source)
    if not manifest.compact:
        raise ExportError(f"{source} is a full export already: its shards hold the windows")
    if out.resolve() == source.resolve():
        raise ExportError(f"--out {out} is the compact export itself; give another folder")
    if found := check_claim(out, overwrite=overwrite):
        reporter.note(f"{out} holds {found}: starting over")
    with garbled_is_damaged(source):
        backend = choose(device, DTYPES[manifest.job["dtype"]])
        reporter.note(backend.sentence())
        plans = exported_tensors(manifest)
        per_window = window_bytes(plans)
        copied = [entry for entry in manifest.files if entry.kind in ("tokens", "weights")]
        needed = per_window * manifest.windows["count"] + sum(entry.bytes for entry in copied)
    check_space(out, needed + HEADROOM)

    with claimed(out, overwrite=overwrite) as lock, garbled_is_damaged(source):
        with reporter.stage("copy", sum(entry.bytes for entry in copied), "bytes") as advance:
            for entry in manifest.files:
                _check_or_copy(source, out, entry, copied=entry in copied)
                advance(entry.bytes if entry in copied else 0)
        windows = open_source(source, manifest, backend)
    job = manifest.job
    with garbled_is_damaged(source):
        per_shard = windows_per_shard(plans, job["shard_size"], job["batch_size"])
        shards = write_shards(out, windows, plans, per_shard, reporter)
        software = versions()
        method = Method("tables", (manifest.compute or {})["method_reason"])
        full = replace(
            manifest,
            job=job | {"artifact": "full"},
            software=manifest.software | {name: software[name] for name in ("torch", "triton")},
            compute=backend.record(method, windows.layer, windows.tables),
            expand=None,
            files=(*copied, *shards),
        )
    write_run(out, started, reporter)
    commit(out, full)
    release(out, lock)
    return summary(out, full, reporter)


def _check_or_copy(source: Path, out: Path, entry: FileEntry, *, copied: bool) -> None:
    """Read a file of the compact export once: against its hash, and to out where it goes there."""
    path = source / entry.name
    try:
        sha256 = copy(path, out, entry.name).sha256 if copied else sha256_of(path)
    except OSError as error:
        place = error.filename or path
        raise ExportError(f"{place} could not be read or written: {error.strerror}") from error
    if sha256 != entry.sha256:
        raise ExportError(f"{path} is damaged: its bytes do not match the hash in {MANIFEST}")
