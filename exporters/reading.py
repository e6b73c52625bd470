"""Reads single windows and the token stream of a committed export."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporters.errors import ExportError
from exporters.files import FileRecord
from exporters.manifest import Manifest
from exporters.tokens import TokenPart, TokenStream


@dataclass(frozen=True)
class Window:
    """One row of every tensor of an export, and where its tokens stand in the stream."""

    index: int
    start: int
    tensors: dict[str, Tensor]


def read_window(root: Path, manifest: Manifest, index: int) -> Window:
    """Window `index` of the export at root, counted from 0, from its shard.

    Raises:
        ExportError: if there is no such window, or its shard cannot be read.
    """
    count = manifest.windows["count"]
    if not 0 <= index < count:
        raise ExportError(f"{root} has windows 0 to {count - 1}; --window {index} is none of them")
    for entry in manifest.of_kind("windows"):
        if entry.first <= index < entry.first + entry.count:
            try:
                with safe_open(root / entry.name, framework="pt") as file:
                    row = index - entry.first
                    tensors = {name: file.get_slice(name)[row] for name in entry.tensors}
            except (OSError, SafetensorError) as error:
                raise ExportError(
                    f"{root / entry.name} could not be read: {error}; run qkvmill verify {root}"
                ) from error
            return Window(index, int(tensors["window_start"]), tensors)
    raise ExportError(f"{root}: no shard holds window {index}; run qkvmill verify {root}")


def open_stream(root: Path, manifest: Manifest) -> TokenStream:
    """The token stream of an export.

    Raises:
        ExportError: if its files cannot be opened.
    """
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
    try:
        return TokenStream(root, parts)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"the tokens of {root} could not be read: {error}") from error
