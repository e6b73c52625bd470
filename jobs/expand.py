"""compact -> full: the windows that the tables stand for, as shards."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from exporters.bucket import Bucket, Place
from exporters.claims import claimed
from exporters.contents import exported_tensors, window_bytes
from exporters.errors import DamageError, ExportError
from exporters.files import copy, sha256_of
from exporters.manifest import (
    MANIFEST,
    Manifest,
    commit,
    garbled_is_damaged,
    read_manifest,
)
from exporters.reading import open_source, token_parts, window_plan
from exporters.safefile import own_file
from exporters.source import WindowSource, read_windows
from exporters.space import HEADROOM, check_space
from exporters.state import check_claim
from exporters.strays import bytes_at
from exporters.tokens import TokenStream
from exporters.windows import STARTS, WindowPlan, open_starts
from jobs.apart import lies_in
from jobs.compute import write_shards
from jobs.fingerprint import expanded_fingerprint, expanded_software
from jobs.outputs import windows_per_shard
from jobs.owned import owned
from jobs.progress import Reporter
from jobs.record import Summary, summary, write_run
from jobs.resume import finished, say_what_is_kept
from jobs.room import check_scratch, shards_under_way
from kernels.dispatch import Backend, choose
from kernels.layer import DTYPES
from kernels.method import Method


def expand(
    source: Place,
    out: Place,
    *,
    device: str,
    overwrite: bool,
    reporter: Reporter,
    scratch: Path | None = None,
) -> Summary:
    """Write the compact export at source as a full one at out.

    The bytes are those of `run --artifact full --method tables` with the options of the compact
    export, on the same kind of machine.

    Raises:
        QkvmillError: if source is no compact export, is damaged or changes meanwhile, or out cannot
            be written; what is finished is then kept at out.
    """
    started = datetime.now(UTC)
    manifest = read_manifest(source)
    if not manifest.compact:
        raise ExportError(f"{source} is a full export already: its shards hold the windows")
    if lies_in(out, source) and lies_in(source, out):
        raise ExportError(f"--out {out} is the compact export itself; give another folder")
    if lies_in(out, source) or lies_in(source, out):
        raise ExportError(f"--out {out} and {source} lie in each other; give another folder")
    with garbled_is_damaged(source):
        backend = choose(device, DTYPES[manifest.job["dtype"]])
        job = expanded_fingerprint(manifest, backend)

    def changed_input(full: Manifest) -> Place | None:
        return None if full.corpus == manifest.corpus else source

    if not overwrite and (done := finished(out, job, changed_input, reporter)):
        return summary(out, done, reporter)
    found = check_claim(out, overwrite=overwrite)
    reporter.note(backend.sentence())
    with garbled_is_damaged(source):
        plans = exported_tensors(manifest)
        kinds = ("tokens", "weights", "starts") if manifest.split else ("tokens", "weights")
        copied = [entry for entry in manifest.files if entry.kind in kinds]
        windows_bytes = window_bytes(plans) * manifest.windows["count"]
        copied_bytes = sum(entry.bytes for entry in copied)
    per_shard = windows_per_shard(plans, manifest.job["shard_size"], manifest.job["batch_size"])
    if isinstance(out, Bucket):
        under_way = min(windows_bytes, shards_under_way() * per_shard * window_bytes(plans))
        check_scratch(scratch, copied_bytes + under_way + HEADROOM)
    else:
        check_space(out, windows_bytes + copied_bytes - bytes_at(out) + HEADROOM)

    job["source_sha256"] = sha256_of(source / MANIFEST)
    with (
        claimed(out, job, overwrite=overwrite, scratch=scratch) as work,
        garbled_is_damaged(source),
    ):
        say_what_is_kept(work, found, reporter)
        missing = [entry for entry in copied if work.kept(entry.name) != entry]
        windows, plan = _checked_source(source, manifest, backend, reporter)
        with reporter.stage("copy", sum(entry.bytes for entry in missing), "bytes") as advance:
            for entry in missing:
                if copy(own_file(source, entry.name), work.root, entry.name).sha256 != entry.sha256:
                    raise _damaged(source / entry.name)
                work.journal.add_file(entry)
                advance(entry.bytes)
        # From here on nothing is read from the compact export, which may change again.
        if manifest.split:
            plan = replace(plan, root=out, listed=open_starts(work.root / STARTS))
        stream = TokenStream(work.root, token_parts(manifest))
        windows = replace(windows, read=partial(read_windows, plan, stream))
        shards = write_shards(work, windows, plans, plan.count, per_shard, reporter)
        method = Method("tables", (manifest.compute or {})["method_reason"])
        full = replace(
            manifest,
            job=manifest.job | {"artifact": "full"},
            software=expanded_software(manifest),
            compute=backend.record(method, windows.layer, windows.tables),
            expand=None,
            files=(*copied, *shards),
        )
        reporter.check()
        work.journal.check_finished()
        write_run(out, started, reporter)
        commit(out, full)
    return summary(out, full, reporter)


def _checked_source(
    source: Place, manifest: Manifest, backend: Backend, reporter: Reporter
) -> tuple[WindowSource, WindowPlan]:
    """What windows are computed from, in memory of our own but for the token stream, and they.

    Raises:
        ExportError: if a file is not as the manifest says, or changes while it is read.
    """
    size = sum(entry.bytes for entry in manifest.files)
    found = []
    with reporter.stage("check source", size, "bytes") as advance:
        for entry in manifest.files:
            path = own_file(source, entry.name)
            try:
                found.append((path, _status(path)))
                sha256 = sha256_of(path, advance)
            except OSError as error:
                raise DamageError(f"{path} could not be read: {error.strerror}") from error
            if sha256 != entry.sha256:
                raise _damaged(path)
    opened = open_source(source, manifest, backend)
    windows = replace(
        opened,
        layer=owned(opened.layer) if opened.layer else None,
        tables=owned(opened.tables) if opened.tables else None,
    )
    plan = owned(window_plan(source, manifest, manifest.tokens["count"]))
    for path, status in found:
        if _status(path) != status:
            raise ExportError(f"{path} changed while it was read; run again when it is left alone")
    return windows, plan


def _status(path: Place) -> object:
    """What changes when somebody writes to a file."""
    if isinstance(path, Bucket):
        return path.look()
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _damaged(path: Place) -> DamageError:
    return DamageError(f"{path} is damaged: its bytes do not match the hash in {MANIFEST}")
