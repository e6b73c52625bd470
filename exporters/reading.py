"""Opens a committed export, full or compact, as a sequence of windows."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from exporters.bucket import Bucket, Place, place_of
from exporters.contents import TensorPlan, exported_tensors, starts_tensors
from exporters.errors import DamageError, ExportError
from exporters.files import FileRecord, local_copy
from exporters.layerfile import load_layer
from exporters.manifest import MANIFEST, FileEntry, Manifest, garbled_is_damaged, read_manifest
from exporters.objecttensors import ObjectTensors
from exporters.safefile import open_tensors, own_file, read_header
from exporters.shards import DTYPE_NAMES
from exporters.source import WindowSource, fill, read_windows, separate
from exporters.strays import WEIGHTS
from exporters.tablefile import TABLES, load_tables
from exporters.tokens import TokenPart, TokenStream
from exporters.windows import STARTS, WindowPlan, open_starts
from kernels.dispatch import Backend, choose
from kernels.layer import DTYPES
from kernels.packed import pack
from kernels.tables import Tables

PROJECTED = ("q", "k", "v")


class Export:
    """The windows of an export, in order: `len`, `[i]` and `.batches`; made by `open_export`.

    Whether windows are read from shards or computed from tables, they are the same tensors by the
    same names. With `--tail pad` one of them is `mask`, bool [T], true where both input and target
    are real: `loss[mask]` leaves the others out. These come last in their window, where causal
    attention never looks. Files are opened when they are first needed, and anew in a process that
    it is pickled into, so that a DataLoader with workers may hold it.
    """

    def __init__(self, root: Place) -> None:
        self.root = root
        self.manifest: Manifest = read_manifest(root)
        with garbled_is_damaged(root):
            self._plans = exported_tensors(self.manifest)
        self._shard: tuple[str, Any] = ("", None)
        self._sources: dict[torch.device, WindowSource] = {}  # of a compact export, by device

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "manifest": self.manifest, "_plans": self._plans}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_shard": ("", None), "_sources": {}}

    def __repr__(self) -> str:
        kind = "compact" if self.manifest.compact else "full"
        return f"<{kind} export {self.root}: {len(self)} windows of {', '.join(self._plans)}>"

    def __len__(self) -> int:
        count: int = self.manifest.windows["count"]
        return count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index` on the CPU: tensors by name, without a dimension for windows.

        Raises:
            IndexError: if there is no such window.
            ExportError: if a file of the export cannot be read.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self.root} has windows 0 to {count - 1}, so none is {index}")
        first = index % count
        tensors = self._read(first, first + 1, torch.device("cpu"), self._plans.keys())
        return {name: tensor[0] for name, tensor in tensors.items()}

    def batches(
        self,
        batch_size: int,
        device: str | torch.device = "cpu",
        names: Collection[str] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """All windows in order, batch_size at a time (the last batch may have fewer), on a device.

        Tensors have the windows as their first dimension. A compact export is combined where its
        batches are wanted, on a CUDA device by the Triton kernel.

        Args:
            names: of the tensors that are read or computed; None for all.

        Raises:
            ValueError: if batch_size is less than 1, or there is no tensor of a name.
            DeviceError: if the device is not there.
            ExportError: if a file of the export cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        names = self._plans.keys() if names is None else names
        if unknown := set(names) - self._plans.keys():
            raise ValueError(f"{self.root} holds no tensor {min(unknown)!r}")
        place = choose(str(device), DTYPES[self.manifest.job["dtype"]]).device
        for first in range(0, len(self), batch_size):
            yield self._read(first, min(first + batch_size, len(self)), place, names)

    def tables(self, device: str | torch.device = "cpu") -> Tables:
        """The tables of a compact export, on a device.

        Raises:
            DeviceError: if the device is not there.
            ExportError: if the export is full, or a file of it cannot be read.
        """
        place = choose(str(device), DTYPES[self.manifest.job["dtype"]]).device
        tables = self._source(place).tables if self.manifest.compact else None
        if tables is None:
            raise ExportError(f"{self.root} is a full export, which holds no tables")
        return tables

    def _source(self, device: torch.device) -> WindowSource:
        """What the windows of a compact export are computed from, on a device."""
        with garbled_is_damaged(self.root):
            if device not in self._sources:
                backend = choose(str(device), DTYPES[self.manifest.job["dtype"]])
                self._sources[device] = open_source(self.root, self.manifest, backend)
            return self._sources[device]

    def _read(
        self, first: int, stop: int, device: torch.device, names: Collection[str]
    ) -> dict[str, Tensor]:
        with garbled_is_damaged(self.root):
            if not self.manifest.compact:
                return self._from_shards(first, stop, device, names)
            source = self._source(device)
            computed = set(names)
            if computed & set(PROJECTED) and not separate(source.backend, "tables"):
                computed |= set(PROJECTED)
            # Only now is it known that the files bear out what the manifest says of sizes.
            out = {
                name: torch.empty((stop - first, *plan.shape), dtype=plan.dtype, device=device)
                for name, plan in self._plans.items()
                if name in computed
            }
            fill(source, first, stop, out)
            return {name: tensor for name, tensor in out.items() if name in names}

    def _from_shards(
        self, first: int, stop: int, device: torch.device, names: Collection[str]
    ) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        found = 0
        for entry in self.manifest.of_kind("windows"):
            low, high = max(first, entry.first), min(stop, entry.first + entry.count)
            if low < high:
                parts.append(self._rows(entry, low - entry.first, high - entry.first, names))
                found += high - low
        if found != stop - first:
            raise ExportError(
                f"{self.root}: no shard holds windows {first} to {stop - 1}; "
                f"run qkvmill verify {self.root}"
            )
        if len(parts) == 1:
            return {name: tensor.to(device) for name, tensor in parts[0].items()}
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}

    def _rows(
        self, entry: FileEntry, low: int, high: int, names: Collection[str]
    ) -> dict[str, Tensor]:
        """Rows [low, high) of tensors of a shard."""
        try:
            kept, file = self._shard
            if kept != entry.name:
                path = _checked(self.root, entry, self._plans)
                file = ObjectTensors(path) if isinstance(path, Bucket) else open_tensors(path)
                self._shard = (entry.name, file)
            if isinstance(file, ObjectTensors):
                return file.rows(low, high, names)
            return {name: file.get_slice(name)[low:high] for name in entry.tensors if name in names}
        except (OSError, SafetensorError) as error:
            raise _not_read(self.root, entry.name, error) from error


def open_export(path: str | Place) -> Export:
    """Open the committed export at a path or a URL.

    Of one in a bucket, rows of shards and stretches of tokens are read when they are needed, each
    by a request; tables are copied to this machine.

    Raises:
        ExportError: if there is none, or its manifest is damaged or of another format version.
    """
    return Export(place_of(path))


def open_source(root: Place, manifest: Manifest, backend: Backend) -> WindowSource:
    """What the windows of a compact export are computed from, on a device.

    Raises:
        ExportError: if a file cannot be read.
    """
    if [entry.name for entry in manifest.of_kind("tables")] != [TABLES]:
        raise ExportError(f"{root / MANIFEST} names no {TABLES}; run qkvmill verify {root}")
    stream = open_stream(root, manifest)
    windows = window_plan(root, manifest, stream.tokens)
    tables = load_tables(own_file(root, TABLES))
    said, length = manifest.layer or {}, windows.context_length
    widths = {"heads": tables.heads, "kv_heads": tables.kv_heads, "head_dim": tables.head_dim}
    if {name: said.get(name) for name in widths} != widths:
        raise ExportError(f"{root / MANIFEST} has other widths than {TABLES}: {widths}")
    try:
        tables.check_length(length)
    except ValueError as error:
        raise ExportError(f"{root / TABLES}: {error}") from error
    layer = None
    if "features" in manifest.job["export"]:
        for entry in manifest.of_kind("weights"):
            _checked(root, entry)
        with local_copy(own_file(root, WEIGHTS)) as file:
            layer = load_layer(file, context_length=length)
        if layer.d_model != said.get("d_model"):
            raise ExportError(f"{root / MANIFEST} has another d_model than {WEIGHTS}")
    return WindowSource(
        read=partial(read_windows, windows, stream),
        context_length=length,
        layout=manifest.job["layout"],
        backend=backend,
        layer=None if layer is None else pack(layer, backend.device),
        tables=tables.on(backend.device),
    )


def window_plan(root: Place, manifest: Manifest, tokens: int) -> WindowPlan:
    """Where the windows of a compact export begin, in a stream of so many tokens.

    Raises:
        ExportError: if the file of starts cannot be read, or windows leave the stream.
    """
    windows = manifest.windows
    plan = WindowPlan(
        root=root,
        count=windows["count"],
        context_length=windows["context_length"],
        stride=windows["stride"],
        split=manifest.split,
        padding=manifest.padding,
        padded_windows=windows["padded_windows"],
        padded_places=windows["padded_places"],
        tokens=tokens,
        dropped_tokens=windows["dropped_tokens"],
        short_documents=windows["short_documents"],
    )
    if not manifest.lists_starts:
        if (plan.count - 1) * windows["stride"] >= tokens:  # which may be beyond any tensor's range
            raise ExportError(f"{root}: windows begin beyond its {tokens} tokens")
        plan.places(plan.count - 1, plan.count)
        return plan
    entries = manifest.of_kind("starts")
    if [(entry.name, entry.count) for entry in entries] != [(STARTS, plan.count)]:
        raise ExportError(f"{root / MANIFEST} names no {STARTS}; run qkvmill verify {root}")
    try:
        file = open_starts(_checked(root, entries[0], starts_tensors(padded=manifest.padded)))
        if manifest.split:
            return replace(plan, listed=file)
        plan = replace(plan, random_starts=file.get_tensor("window_start"))
    except (OSError, SafetensorError) as error:
        raise _not_read(root, STARTS, error) from error
    plan.places(0, plan.count)
    return plan


def open_stream(root: Place, manifest: Manifest) -> TokenStream:
    """The token stream of an export.

    Raises:
        ExportError: if its files cannot be opened.
    """
    entries = manifest.of_kind("tokens")
    expected = 0
    for entry in entries:
        starts = entry.tensors["document_starts"]["shape"]
        shapes = {"input_ids": ("int32", [entry.count]), "document_starts": ("int64", starts)}
        said = {name: (e["dtype"], e["shape"]) for name, e in entry.tensors.items()}
        if entry.first != expected or said != shapes or len(starts) != 1:
            raise ExportError(f"{root / MANIFEST}: {entry.name} is no next part of the tokens")
        _checked(root, entry)
        expected += entry.count
    if len({entry.name for entry in entries}) < len(entries):
        raise ExportError(f"{root / MANIFEST}: a file of tokens stands in it twice")
    if expected != manifest.tokens["count"]:
        raise ExportError(f"{root / MANIFEST}: its files hold {expected} tokens, not as many")
    return TokenStream(root, token_parts(manifest))


def _checked(root: Place, entry: FileEntry, plans: dict[str, TensorPlan] | None = None) -> Place:
    """The path of a file whose header says what the manifest says, and what `plans` say of a row.

    The size of the file is as its header needs: reading beyond a file that is mapped into memory
    would end the process.

    Raises:
        ExportError: if it is otherwise, or the file cannot be read.
    """
    path = own_file(root, entry.name)
    try:
        header = read_header(path).tensors
    except OSError as error:
        raise _not_read(root, entry.name, error) from error
    found = {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in header.items()}
    expected = entry.tensors
    if plans is not None:
        expected = {
            name: {"dtype": DTYPE_NAMES[plan.dtype], "shape": [entry.count, *plan.shape]}
            for name, plan in plans.items()
        }
    if not found == expected == entry.tensors:
        raise DamageError(f"{path} holds other tensors than it should")
    return path


def _not_read(root: Place, name: str, error: Exception) -> DamageError:
    """The error of a file of an export, with its reason."""
    reason = getattr(error, "strerror", None) or error
    return DamageError(f"{root / name} could not be read: {reason}")


def token_parts(manifest: Manifest) -> list[TokenPart]:
    """The parts of the token stream, as the manifest describes them."""
    parts = []
    documents = 0
    for entry in manifest.of_kind("tokens"):
        starts = int(entry.tensors["document_starts"]["shape"][0])
        parts.append(
            TokenPart(
                file=FileRecord(entry.name, entry.bytes, entry.sha256),
                first_token=entry.first,
                tokens=entry.count,
                first_document=documents,
                documents=starts,
            )
        )
        documents += starts
    return parts
