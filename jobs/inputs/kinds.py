"""The name of a file -> how it is read: its format, and the compression around it."""

import os
from dataclasses import dataclass

FORMATS = {
    ".txt": "text", ".md": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".npy": "npy", ".bin": "bin",
    ".safetensors": "safetensors",
}  # fmt: skip
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
TEXTUAL = ("text", "jsonl", "csv", "tsv")
"""Formats whose files never begin as compressed ones do."""

READ = f"{', '.join(FORMATS)}; also in {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class Kind:
    """How a file is read."""

    format: str
    compression: str | None

    @property
    def refused(self) -> bool:
        """Whether it is a compressed safetensors file, which is not read."""
        return self.format == "safetensors" and self.compression is not None


def kind_of(name: str, given: str | None = None) -> Kind | None:
    """The kind of a file by its name, or with the format that was given; None where none is known.

    The case of suffixes does not matter.
    """
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    known = given or FORMATS.get(suffix)
    return None if known is None else Kind(known, compression)
