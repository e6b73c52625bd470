"""Documents that sit on the cuts, and the same documents in each format and compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import tiktoken
import zstandard
from hypothesis import strategies as st

from jobs.encode import Encoded, EncodeSettings, encode_segment
from jobs.inputs.files import find_files
from jobs.inputs.opening import FileRead
from jobs.inputs.read import Reader
from jobs.inputs.segments import ReadSettings, Segment
from jobs.tokenizer import Tokenizer, load_encoding, tiktoken_encoding

ON_THE_CUTS = st.lists(
    st.sampled_from(
        ["\n", "\r\n", "\r", " ", "  ", "\t", "a", "word", " the", "Z9", "é", "漢字", "，", "。",
         "\u3000", "👩\u200d👩\u200d👧", "e\u0301", "\u0301", ".", ",", '"', '""', "\\", "'s",
         "\xa0", "<|endoftext|>", "\u2028", "\x85", "\x1c", "\0", "١", "12345", "\ufffd", "\ufeff",
         "\n\n", " \n", "ab\ncd", "x\n1", "한\n국"]
    ), max_size=30,
).map("".join)  # fmt: skip
DOCUMENTS = st.lists(ON_THE_CUTS, min_size=1, max_size=8)

NASTY = (
    "one word\nand another\r\nand \"quotes\", 'commas'\n\n",
    "",
    "漢字，漢字。漢字、" * 9 + "👩\u200d👩\u200d👧 e\u0301\u2028next\x85line\x1c",
    "tab\tand\\n<|endoftext|> " * 5,
    "",
    "half a line\r",
    "\"\n\",\"\n",
)  # fmt: skip
"""Documents with what formats use as marks."""

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, 1),
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
}


@cache
def tokenizer(name: str) -> Tokenizer:
    """An encoding, loaded once."""
    return load_encoding(name)


@cache
def encoding(name: str) -> tiktoken.Encoding:
    """tiktoken's own of the same name."""
    return tiktoken_encoding(name)[0]


def joined(name: str, documents: Iterable[str]) -> list[int]:
    """tiktoken's ids of whole documents, with the end-of-text token between them."""
    ids: list[int] = []
    for number, text in enumerate(documents):
        ids += [encoding(name).eot_token] if number else []
        ids += encoding(name).encode_ordinary(text)
    return ids


def jsonl(documents: Sequence[str], *, ascii_only: bool = False) -> bytes:
    lines = (json.dumps({"text": text}, ensure_ascii=ascii_only) for text in documents)
    return "".join(f"{line}\n" for line in lines).encode()


def table(documents: Sequence[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *([number, text] for number, text in enumerate(documents))])
    return out.getvalue().encode()


def parquet_of(columns: dict[str, Any] | arrow.Table, rows: int = 3) -> bytes:
    """A Parquet file with so many rows in a group."""
    out = io.BytesIO()
    whole = columns if isinstance(columns, arrow.Table) else arrow.table(columns)
    parquet.write_table(whole, out, row_group_size=rows)
    return out.getvalue()


RECORDS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "jsonl": jsonl,
    "json": lambda documents: jsonl(documents, ascii_only=True),
    "csv": table,
    "tsv": lambda documents: table(documents, "\t"),
    "parquet": lambda documents: parquet_of({"text": arrow.array(documents, arrow.string())}),
}
"""How formats whose files hold many documents write them, by suffix."""


def read_settings(name: str = "gpt2", **changed: object) -> ReadSettings:
    """The options of a job that names none, with an encoding."""
    known = tokenizer(name)
    values = {
        "text_field": "text", "text_errors": "strict", "token_dtype": None,
        "max_record_bytes": 1 << 20, "cuttable": True, "end_of_text": known.end_of_text,
        "vocabulary_size": known.vocabulary_size, "tokenizer": name,
    }  # fmt: skip
    return ReadSettings(**{**values, **changed})  # type: ignore[arg-type]


def encode_settings(name: str = "gpt2", **changed: object) -> EncodeSettings:
    values = {"separator": tokenizer(name).end_of_text, "text_field": "text",
              "text_errors": "strict", "max_record_bytes": 1 << 20}  # fmt: skip
    return EncodeSettings(**{**values, **changed})  # type: ignore[arg-type]


def encoded(segments: Iterable[Segment], name: str = "gpt2", **changed: object) -> list[Encoded]:
    """What segments come to."""
    settings = encode_settings(name, **changed)
    return [encode_segment(segment, tokenizer(name), settings) for segment in segments]


def segments_of(path: Path, block: int = 64, **changed: object) -> list[Segment]:
    """The segments of the files at a path."""
    reader = Reader(read_settings(**changed), lambda _: None, None, block)  # type: ignore[arg-type]
    return [
        segment
        for file in find_files([str(path)]).files
        for segment in reader.segments(file, FileRead())
    ]
