"""Files -> segments: which reader takes which format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.inputs.files import InputFile
from jobs.inputs.ids import bin_ids, npy_ids, safetensors_ids
from jobs.inputs.lines import line_blocks
from jobs.inputs.locations import shown
from jobs.inputs.opening import FileRead, open_seekable, open_stream
from jobs.inputs.parquet import parquet_texts
from jobs.inputs.rows import rows
from jobs.inputs.segments import BLOCK, ReadSettings, Segment
from jobs.inputs.text import text_pieces

SEEKABLE = ("parquet", "safetensors")


@dataclass(frozen=True)
class Reader:
    """How files of a job are read.

    note takes what is to be said of them; scratch is a folder for what has to be unpacked first;
    block is about how many bytes a segment holds.
    """

    settings: ReadSettings
    note: Callable[[str], None]
    scratch: Path | None = None
    block: int = BLOCK

    def segments(self, file: InputFile, record: FileRead, base: int = 0) -> Iterator[Segment]:
        """The segments of a file; `record` is complete once they are used up.

        Args:
            base: how many tokens of the same stream the files before it held, for token files.

        Raises:
            CorpusError: if the file cannot be read, or is not what its name says.
        """
        where = shown(file.location)
        if file.format in SEEKABLE:
            with open_seekable(file, record, self.note, self.scratch) as opened:
                if file.format == "parquet":
                    yield from parquet_texts(where, opened, self.settings, self.block)
                else:
                    yield from safetensors_ids(where, opened, self.settings, base, self.block)
            return
        with open_stream(file, record, self.note) as stream:
            match file.format:
                case "jsonl":
                    yield from line_blocks(stream, self.settings.max_record_bytes, self.block)
                case "csv" | "tsv":
                    mark = "," if file.format == "csv" else "\t"
                    yield from rows(where, stream, mark, self.settings, self.block)
                case "npy":
                    yield from npy_ids(where, stream, self.settings, self.block)
                case "bin":
                    yield from bin_ids(where, stream, self.settings, self.block)
                case _:
                    yield from text_pieces(where, stream, self.settings, self.block)
