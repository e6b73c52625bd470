"""What a worker of a cluster does: a function for each stage, and what they are given."""

import glob
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.bucket import Bucket, Place
from exporters.contents import TensorPlan
from exporters.errors import ExportError
from exporters.source import WindowSource, separate
from exporters.strays import HOLDER, WORK
from jobs.carried import arrived, carried
from jobs.choose_tokenizer import load_tokenizer
from jobs.encode import Encoded, EncodeSettings, encode_segment
from jobs.errors import ClusterError
from jobs.inputs.segments import Segment
from jobs.shards import Made, Shard, make_by_pieces, make_whole, piece_buffers, slower_body
from jobs.tokenizer import ENCODINGS, Tokenizer
from jobs.versions import versions
from kernels.dispatch import Backend, choose
from kernels.tables import build

FILE = "tokenizer.json"
BESIDE = ("tokenizer_config.json", "config.json")  # which may tell the end-of-text token
LEFT = "qkvmill-worker-"  # the start of the name of a folder in which a worker makes a shard
OWN = "qkvmill"  # comes from where the job is, whatever version is installed

_kept: dict[str, Any] = {}  # what was prepared last, by its key


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a job computes, as far as a worker chooses its kernels by it."""

    device: str  # "cpu" or "cuda"
    dtype: torch.dtype
    tf32: bool

    def backend(self) -> Backend:
        """The backend of this worker."""
        return choose(self.device, self.dtype, tf32=self.tf32)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a worker has to have in common with the job that it works for."""

    versions: dict[str, str | None]
    computing: Computing | None
    place: dict[str, Any]  # what of the machine decides the bits
    out: Place  # of the export; a folder is to be the same one here
    holder: str  # what stands there of who holds it
    scratch: Path | None


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that travels: a name of tiktoken's, or the files of a model's folder."""

    name: str
    files: dict[str, bytes] | None  # None for one of tiktoken's
    vocabulary_sha256: str


@dataclass(frozen=True, kw_only=True)
class WindowSetup:
    """What the shards of a job are made from, but for their ids."""

    out: Place  # of the export
    holder: str
    scratch: Path | None  # where shards for a bucket are made, if not in the system's folder
    computing: Computing | None
    context_length: int
    layout: str
    plans: dict[str, TensorPlan]
    layer: Any  # a PackedLayer or None, carried
    tables: Any  # Tables or None, carried


def tokenizer_files(place: str | Path, tokenizer: Tokenizer) -> TokenizerFiles:
    """A tokenizer as it travels to workers.

    Args:
        place: where it is, as jobs/choose_tokenizer.py has it.

    Raises:
        ClusterError: if its files cannot be read any more.
    """
    if isinstance(place, str) and place in ENCODINGS:
        return TokenizerFiles(place, None, tokenizer.vocabulary_sha256)
    folder, files = Path(place), {}
    try:
        if not folder.is_dir():
            files[FILE] = folder.read_bytes()
            folder = folder.parent
        for name in (FILE, *BESIDE):
            if name not in files and (folder / name).is_file():
                files[name] = (folder / name).read_bytes()
    except OSError as error:
        raise ClusterError(f"{error.filename} could not be read: {error.strerror}") from error
    return TokenizerFiles(tokenizer.name, files, tokenizer.vocabulary_sha256)


def check(expected: Expected) -> None:
    """Raise ClusterError where this worker would give other bytes, or write them elsewhere."""
    torch.set_num_threads(1)
    found = versions(*expected.versions)
    for name, version in expected.versions.items():
        if name != OWN and found[name] != version:
            raise ClusterError(
                f"it has {name} {found[name] or 'not installed'}, the job {name} "
                f"{version or 'not installed'}; install the same on all nodes"
            )
    if expected.computing is not None:
        place = expected.computing.backend().place
        if place != expected.place:
            raise ClusterError(
                f"it computes with {place}, the job with {expected.place}, which may give other "
                "bits; use nodes of one kind"
            )
    if expected.scratch is not None and not expected.scratch.is_dir():
        raise ClusterError(f"it has no folder --scratch {expected.scratch}; make it on all nodes")
    if isinstance(expected.out, Bucket):
        _remove_left(Path(expected.scratch or tempfile.gettempdir()))
    if holder_of(expected.out) != expected.holder:
        raise ClusterError(
            f"it does not see --out {expected.out} as the job does; give a folder that all nodes "
            "share, or a URL such as s3://bucket/prefix"
        )


def encode(
    key: str, files: TokenizerFiles, settings: EncodeSettings, segments: Sequence[Segment]
) -> list[Encoded]:
    """The ids of segments.

    Raises:
        ClusterError: if the vocabulary is not the job's.
        TokenizerError: if the tokenizer cannot be used here.
    """
    tokenizer: Tokenizer = _keep(key, lambda: _open_tokenizer(files))
    return [encode_segment(segment, tokenizer, settings) for segment in segments]


def build_rows(computing: Computing, layer: Any, token_ids: Any) -> Any:
    """Tables of a FirstLayer for some ids, all carried."""
    return carried(build(arrived(layer), arrived(token_ids), computing.backend().device))


def make_shard(
    key: str, setup: WindowSetup, shard: Shard, integers: dict[str, Any]
) -> tuple[Made, list[str]]:
    """Make one shard; returns what came of it, and what is to be said.

    In a bucket it has its name then. In a folder it has one that no other worker uses, as the
    record of it tells: the job gives it its own.

    Args:
        integers: those of its windows, by name, carried.

    Raises:
        ExportError: if it cannot be written.
    """
    source: WindowSource = _keep(key, lambda: _open_source(setup))
    tensors = {name: arrived(values) for name, values in integers.items()}
    source = replace(source, read=partial(_rows, shard.first, tensors))
    if isinstance(setup.out, Path):
        _check_held(setup)
        # Another worker may still be at this shard, though its node is taken for dead.
        own = replace(shard, name=f"{WORK}/{Path(shard.name).name}.{uuid.uuid4().hex}")
        made, notes = _make(setup.out, setup, source, own)
        return replace(made, shard=shard), notes
    prefix = f"{_left_here()}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=setup.scratch) as folder:
        made, notes = _make(Path(folder), setup, source, shard)
        began = time.monotonic()
        _check_held(setup)
        (setup.out / shard.name).upload(Path(folder) / shard.name)
        return replace(made, seconds=made.seconds + time.monotonic() - began), notes


def _check_held(setup: WindowSetup) -> None:
    """Raise ExportError if the job does not hold the export: other shards are not replaced."""
    if holder_of(setup.out) != setup.holder:
        raise ExportError(f"--out {setup.out} was taken over, moved or removed; this run stops")


def _remove_left(scratch: Path) -> None:
    """Remove the folders of workers that were killed on this machine."""
    for folder in scratch.glob(f"{glob.escape(_left_here())}*"):
        pid = folder.name.removeprefix(_left_here()).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _left_here() -> str:
    """The start of their names, with this machine's: machines may share the folder above."""
    return f"{LEFT}{socket.gethostname()}-"


def holder_of(out: Place) -> str | None:
    """What stands at the place of an export of who holds it; None where nothing does.

    Raises:
        ExportError: if a bucket cannot be read.
    """
    if isinstance(out, Bucket):
        said = (out / HOLDER).read_all()
        return None if said is None else said.decode("utf-8", "replace")
    try:
        return (out / HOLDER).read_text()
    except OSError:
        return None


def _make(
    root: Path, setup: WindowSetup, source: WindowSource, shard: Shard
) -> tuple[Made, list[str]]:
    if separate(source.backend, "direct" if source.tables is None else "tables"):
        note = slower_body(source, setup.plans)
        buffers = piece_buffers(setup.plans)
        made = make_by_pieces(root, source, setup.plans, shard, buffers, _no_progress)
        return made, [] if note is None else [note]
    notes: list[str] = []
    return make_whole(root, source, setup.plans, shard, notes.append), notes


def _keep(key: str, prepare: Callable[[], Any]) -> Any:
    """What was prepared under a key; anything else makes room for it first."""
    if key not in _kept:
        _kept.clear()
        _kept[key] = prepare()
    return _kept[key]


def _open_tokenizer(files: TokenizerFiles) -> Tokenizer:
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above, files.name)  # which stands in what the tokenizer says of a text
        folder.mkdir()
        for name, data in (files.files or {}).items():
            (folder / name).write_bytes(data)
        tokenizer = load_tokenizer(files.name if files.files is None else folder)
    if tokenizer.vocabulary_sha256 != files.vocabulary_sha256:
        raise ClusterError(
            f"a worker has another vocabulary of {files.name}: {tokenizer.vocabulary_sha256}, the "
            f"job {files.vocabulary_sha256}; install the same version of qkvmill on all nodes"
        )
    return tokenizer


def _open_source(setup: WindowSetup) -> WindowSource:
    """What windows are computed from, on the device of this worker; `read` is still missing."""
    backend = None if setup.computing is None else setup.computing.backend()
    layer, tables = arrived(setup.layer), arrived(setup.tables)
    if backend is not None:
        layer = None if layer is None else layer.on(backend.device)
        tables = None if tables is None else tables.on(backend.device)
    return WindowSource(
        read=partial(_rows, 0, {}),
        context_length=setup.context_length,
        layout=setup.layout,
        backend=backend,
        layer=layer,
        tables=tables,
    )


def _rows(
    offset: int, tensors: dict[str, Tensor], first: int, stop: int, names: Collection[str]
) -> dict[str, Tensor]:
    """As exporters.source.Read, from the tensors of windows from `offset` on."""
    return {name: tensors[name][first - offset : stop - offset] for name in names}


def _no_progress(windows: int, size: int) -> None:
    """A worker tells of whole shards only."""
