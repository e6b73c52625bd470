"""compact -> full: the windows that the tables stand for, as shards."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from exporters.contents import exported_tensors, window_bytes
from exporters.errors import ExportError
from exporters.files import copy, sha256_of
from exporters.folder import Work, check_claim, claimed, else_in_vain
from exporters.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    commit,
    garbled_is_damaged,
    read_manifest,
)
from exporters.reading import open_source
from exporters.safefile import own_file
from exporters.space import check_space
from exporters.strays import bytes_at
from jobs.compute import write_shards
from jobs.fingerprint import expanded_fingerprint, expanded_software
from jobs.outputs import windows_per_shard
from jobs.progress import Reporter
from jobs.record import Summary, summary, write_run
from jobs.resume import finished, say_what_is_kept
from jobs.run import HEADROOM
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
    with garbled_is_damaged(source):
        backend = choose(device, DTYPES[manifest.job["dtype"]])
        job = expanded_fingerprint(manifest, backend)

    def changed_input(full: Manifest) -> Path | None:
        return None if full.corpus == manifest.corpus else source

    if not overwrite and (done := finished(out, job, changed_input, reporter)):
        return summary(out, done, reporter)
    found = check_claim(out, overwrite=overwrite)
    reporter.note(backend.sentence())
    with garbled_is_damaged(source):
        plans = exported_tensors(manifest)
        per_window = window_bytes(plans)
        copied = [entry for entry in manifest.files if entry.kind in ("tokens", "weights")]
        needed = per_window * manifest.windows["count"] + sum(entry.bytes for entry in copied)
    check_space(out, needed - bytes_at(out) + HEADROOM)

    job["source_sha256"] = sha256_of(source / MANIFEST)
    with (
        claimed(out, job, overwrite=overwrite) as work,
        garbled_is_damaged(source),
    ):
        if work.committed:
            return summary(out, read_manifest(out), reporter)
        say_what_is_kept(work, found, reporter)
        size = sum(entry.bytes for entry in copied)
        with else_in_vain(work), reporter.stage("copy", size, "bytes") as advance:
            for entry in manifest.files:
                if work.kept(entry.name) != entry:
                    _check_or_copy(source, work, entry, copied=entry in copied)
                advance(entry.bytes if entry in copied else 0)
            windows = open_source(source, manifest, backend)
        options = manifest.job
        per_shard = windows_per_shard(plans, options["shard_size"], options["batch_size"])
        shards = write_shards(work, windows, plans, per_shard, reporter)
        method = Method("tables", (manifest.compute or {})["method_reason"])
        full = replace(
            manifest,
            job=options | {"artifact": "full"},
            software=expanded_software(manifest),
            compute=backend.record(method, windows.layer, windows.tables),
            expand=None,
            files=(*copied, *shards),
        )
        reporter.check()
        write_run(out, started, reporter)
        commit(out, full)
    return summary(out, full, reporter)


def _check_or_copy(source: Path, work: Work, entry: FileEntry, *, copied: bool) -> None:
    """Read a file of the compact export once: against its hash, and to out where it goes there."""
    path = own_file(source, entry.name)
    try:
        sha256 = copy(path, work.root, entry.name).sha256 if copied else sha256_of(path)
    except OSError as error:
        raise ExportError(f"{path} could not be read: {error.strerror}") from error
    if sha256 != entry.sha256:
        raise ExportError(f"{path} is damaged: its bytes do not match the hash in {MANIFEST}")
    if copied:
        work.journal.add_file(entry)
