"""Opens a committed export, full or compact, as a sequence of windows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporters.contents import exported_tensors
from exporters.errors import ExportError
from exporters.files import FileRecord
from exporters.layerfile import load_layer
from exporters.manifest import MANIFEST, FileEntry, Manifest, garbled_is_damaged, read_manifest
from exporters.source import WindowSource, fill
from exporters.strays import WEIGHTS
from exporters.tablefile import TABLES, load_tables
from exporters.tokens import TokenPart, TokenStream
from exporters.windows import STARTS, WindowPlan
from kernels.dispatch import Backend, choose
from kernels.layer import DTYPES, pack


class Export:
    """The windows of an export, in order: `len`, `[i]` and `.batches`; made by `open_export`.

    Whether windows are read from shards or computed from tables, they are the same tensors by the
    same names. Files are opened when they are first needed, and anew in a process that it is
    pickled into, so that a DataLoader with workers may hold it.
    """

    def __init__(self, root: Path) -> None:
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
        tensors = self._read(first, first + 1, torch.device("cpu"))
        return {name: tensor[0] for name, tensor in tensors.items()}

    def batches(
        self, batch_size: int, device: str | torch.device = "cpu"
    ) -> Iterator[dict[str, Tensor]]:
        """All windows in order, batch_size at a time (the last batch may have fewer), on a device.

        Tensors have the windows as their first dimension. A compact export is combined where its
        batches are wanted, on a CUDA device by the Triton kernel.

        Raises:
            ValueError: if batch_size is less than 1.
            DeviceError: if the device is not there.
            ExportError: if a file of the export cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        place = choose(str(device), DTYPES[self.manifest.job["dtype"]]).device
        for first in range(0, len(self), batch_size):
            yield self._read(first, min(first + batch_size, len(self)), place)

    def _read(self, first: int, stop: int, device: torch.device) -> dict[str, Tensor]:
        with garbled_is_damaged(self.root):
            if not self.manifest.compact:
                return self._from_shards(first, stop, device)
            out = {
                name: torch.empty((stop - first, *plan.shape), dtype=plan.dtype, device=device)
                for name, plan in self._plans.items()
            }
            if device not in self._sources:
                backend = choose(str(device), DTYPES[self.manifest.job["dtype"]])
                self._sources[device] = open_source(self.root, self.manifest, backend)
            fill(self._sources[device], first, stop, out)
            return out

    def _from_shards(self, first: int, stop: int, device: torch.device) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        for entry in self.manifest.of_kind("windows"):
            low, high = max(first, entry.first), min(stop, entry.first + entry.count)
            if low < high:
                parts.append(self._rows(entry, low - entry.first, high - entry.first))
        if sum(len(part["window_start"]) for part in parts) != stop - first:
            raise ExportError(
                f"{self.root}: no shard holds windows {first} to {stop - 1}; "
                f"run qkvmill verify {self.root}"
            )
        if len(parts) == 1:
            return {name: tensor.to(device) for name, tensor in parts[0].items()}
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}

    def _rows(self, entry: FileEntry, low: int, high: int) -> dict[str, Tensor]:
        """Rows [low, high) of every tensor of a shard."""
        try:
            kept, file = self._shard
            if kept != entry.name:
                file = safe_open(self.root / entry.name, framework="pt")
                self._shard = (entry.name, file)
            return {name: file.get_slice(name)[low:high] for name in entry.tensors}
        except (OSError, SafetensorError) as error:
            raise ExportError(
                f"{self.root / entry.name} could not be read: {error}; "
                f"run qkvmill verify {self.root}"
            ) from error


def open_export(path: str | Path) -> Export:
    """Open the committed export at path.

    Raises:
        ExportError: if there is none, or its manifest is damaged or of another format version.
    """
    return Export(Path(path))


def open_source(root: Path, manifest: Manifest, backend: Backend) -> WindowSource:
    """What the windows of a compact export are computed from, on a device.

    Raises:
        ExportError: if a file cannot be read.
    """
    if [entry.name for entry in manifest.of_kind("tables")] != [TABLES]:
        raise ExportError(f"{root / MANIFEST} names no {TABLES}; run qkvmill verify {root}")
    layer = None
    if "features" in manifest.job["export"]:
        length = manifest.windows["context_length"]
        layer = pack(load_layer(root / WEIGHTS, context_length=length), backend.device)
    tables = load_tables(root / TABLES)
    widths = {"heads": tables.heads, "kv_heads": tables.kv_heads, "head_dim": tables.head_dim}
    if manifest.layer is None or {name: manifest.layer[name] for name in widths} != widths:
        raise ExportError(f"{root / MANIFEST} has other widths than {TABLES}: {widths}")
    return WindowSource(
        windows=window_plan(root, manifest),
        stream=open_stream(root, manifest),
        layout=manifest.job["layout"],
        backend=backend,
        layer=layer,
        tables=tables.on(backend.device),
    )


def window_plan(root: Path, manifest: Manifest) -> WindowPlan:
    """Where the windows of a compact export begin.

    Raises:
        ExportError: if the file of random starts cannot be read.
    """
    windows = manifest.windows
    starts = None
    if windows["stride"] is None:
        try:
            with safe_open(root / STARTS, framework="pt") as file:
                starts = file.get_tensor("window_start")
        except (OSError, SafetensorError) as error:
            raise ExportError(f"{root / STARTS} could not be read: {error}") from error
    return WindowPlan(
        count=windows["count"],
        context_length=windows["context_length"],
        stride=windows["stride"] or 0,
        random_starts=starts,
        dropped_tokens=windows["dropped_tokens"],
    )


def open_stream(root: Path, manifest: Manifest) -> TokenStream:
    """The token stream of an export.

    Raises:
        ExportError: if its files cannot be opened.
    """
    try:
        return TokenStream(root, token_parts(manifest))
    except (OSError, SafetensorError) as error:
        raise ExportError(f"the tokens of {root} could not be read: {error}") from error


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
