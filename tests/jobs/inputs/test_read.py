import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from jobs.errors import CorpusError
from jobs.inputs.files import find_files
from jobs.inputs.opening import FileRead
from jobs.inputs.read import Reader
from jobs.inputs.segments import Ids, Lines, TextPiece, Texts
from tests.formats import (
    COMPRESSORS,
    NASTY,
    RECORDS,
    encoded,
    encoding,
    joined,
    jsonl,
    parquet_of,
    read_settings,
    segments_of,
)

EOT = encoding("gpt2").eot_token
WHOLE = {
    **{kind: write(NASTY) for kind, write in RECORDS.items()},
    "txt": NASTY[2].encode(),
    "md": NASTY[2].encode(),
}


@pytest.mark.parametrize("suffix", COMPRESSORS, ids=lambda suffix: suffix or "plain")
@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("block", [3, 17, 1 << 19])
def test_ids_do_not_hang_on_the_format_the_compression_or_the_blocks(
    tmp_path: Path, kind: str, suffix: str, block: int
) -> None:
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](WHOLE[kind]))
    parts = encoded(segments_of(path, block))
    documents = NASTY if kind in RECORDS else NASTY[2:3]
    ids = [i for part in parts for i in part.ids.tolist()]
    assert [EOT, *joined("gpt2", documents)] == ids
    assert len(documents) == sum(len(part.starts) for part in parts)


@pytest.mark.parametrize("suffix", COMPRESSORS, ids=lambda suffix: suffix or "plain")
@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_token_files_may_be_compressed(tmp_path: Path, kind: str, suffix: str) -> None:
    ids = np.array([5, EOT, 6, 7, EOT] * 9, np.uint16)
    np.save(tmp_path / "plain.npy", ids)
    data = (tmp_path / "plain.npy").read_bytes() if kind == "npy" else ids.tobytes()
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](data))
    segments = [segment for segment in segments_of(path) if isinstance(segment, Ids)]
    assert ids.tolist() == [i for segment in segments for i in segment.ids.tolist()]
    assert sum(len(segment.starts) for segment in segments) == 18


@pytest.mark.parametrize("suffix", COMPRESSORS, ids=lambda suffix: suffix or "plain")
@pytest.mark.parametrize("kind", [*WHOLE, "npy", "safetensors"])
def test_the_record_of_a_file_is_of_all_its_bytes(tmp_path: Path, kind: str, suffix: str) -> None:
    plain = tmp_path / f"plain.{kind}"
    match kind:
        case "npy":
            np.save(plain, np.arange(99))
        case "safetensors":
            save_file({"input_ids": np.arange(99)}, plain)
        case _:
            plain.write_bytes(WHOLE[kind])
    if kind == "safetensors" and suffix:
        return
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](plain.read_bytes()))
    (file,) = find_files([str(path)]).files
    record = FileRead()
    for _ in Reader(read_settings(), lambda _: None, tmp_path).segments(file, record):
        pass
    assert path.stat().st_size == record.bytes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.digest.hexdigest()


KINDS = {
    "a.txt": (b"one two", TextPiece),
    "a.JSONL": (b'{"text": "a"}', Lines),
    "a.ndjson": (b'{"text": "a"}', Lines),
    "a.tsv": (b"id\ttext\n1\ta,b\n", Texts),
    "a.bin": (b"\1\0", Ids),
}


@pytest.mark.parametrize(("name", "data", "kind"), [(n, *of) for n, of in KINDS.items()], ids=KINDS)
def test_the_name_says_which_reader_takes_a_file(
    tmp_path: Path, name: str, data: bytes, kind: type
) -> None:
    (tmp_path / name).write_bytes(data)
    (segment,) = segments_of(tmp_path / name)
    assert isinstance(segment, kind)


LONG = jsonl(["a line of some text"] * 999)
SOMETHING_ELSE = {
    "a.parquet": (b"some text\n" * 9, "a.parquet could not be read as Parquet after row 0: "),
    "b.parquet": (
        gzip.compress(parquet_of({"text": ["a"]})),
        "b.parquet could not be read as Parquet",
    ),
    "a.parquet.gz": (parquet_of({"text": ["a"]}), "a.parquet.gz is named .gz but is not gzip; "),
    "b.parquet.gz": (gzip.compress(b"some text"), "b.parquet.gz could not be read as Parquet"),
    "a.jsonl": (
        gzip.compress(LONG),
        "a.jsonl is gzip, but its name does not say so; let it end in .gz",
    ),
    "b.jsonl": (
        zstandard.compress(LONG),
        "b.jsonl is zstd, but its name does not say so; let it end in .zst",
    ),
    "a.csv": (gzip.compress(b"text\na\n"), "a.csv is gzip, but its name does not say so; "),
    "a.txt.zst": (b"some text", "a.txt.zst is named .zst but is not zstd; "),
    "a.npy": (b"some text\n" * 99, "a.npy could not be read as .npy: "),
    "b.npy": (parquet_of({"text": ["a"]}), "b.npy could not be read as .npy: "),
    "a.safetensors": (b"some text\n" * 99, "a.safetensors is not a safetensors file: "),
    "c.jsonl.gz": (
        gzip.compress(LONG)[:60],
        "c.jsonl.gz is cut off: it ends after byte 60, in the",
    ),
    "d.jsonl.zst": (zstandard.compress(LONG)[:-9], "d.jsonl.zst is cut off: it ends after byte "),
    "a.txt": (b"GIF89a\0\0\0", "a.txt is binary, not text: byte 6 is NUL"),
    "b.csv": (parquet_of({"text": ["a"]}), "b.csv has no column 'text', but "),
    "e.csv": (b"id\ttext\n1\ta\n", "e.csv has no column 'text', but id\ttext; "),
}


@pytest.mark.parametrize(
    ("name", "data", "message"), [(n, *of) for n, of in SOMETHING_ELSE.items()], ids=SOMETHING_ELSE
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError) as refused:
        encoded(segments_of(tmp_path / name))
    assert str(refused.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_files_that_are_cut_anywhere_are_refused(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    data = COMPRESSORS[suffix](WHOLE[kind])
    path = tmp_path / f"a.{kind}{suffix}"
    for size in [*range(1, len(data), 23), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CorpusError, match=r"is cut off|is damaged|is named \.|is empty"):
            segments_of(path)
