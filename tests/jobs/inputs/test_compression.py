import lzma
import random
import tracemalloc
from pathlib import Path

import pytest

from jobs.errors import CorpusError
from jobs.inputs.compression import FEED_BYTES, compression_of
from jobs.inputs.files import find_files
from jobs.inputs.opening import FileRead, open_stream
from tests.jobs.inputs.streams import COMPRESS, quiet, read, write

TEXT = "One fish, two fish, 小沈阳江西演唱会, red fish.\n".encode() * 3
MIB = 1 << 20

formats = pytest.mark.parametrize("name", COMPRESS)


@formats
@pytest.mark.parametrize("size", [0, 1, FEED_BYTES - 1, 3 * MIB + 7])
def test_a_compressed_file_is_read_as_what_was_compressed(
    tmp_path: Path, name: str, size: int
) -> None:
    noise = random.Random(size).randbytes(size // 2)
    data = noise + b"a" * (size - len(noise))
    path = write(tmp_path, f"a.bin.{name}", COMPRESS[name](data))
    assert data == read(path, 1 + size // 3)


@formats
def test_runs_that_follow_one_another_are_one_file(tmp_path: Path, name: str) -> None:
    parts = [b"one ", b"", b"two " * 50_000, b"three"]
    path = write(tmp_path, f"a.txt.{name}", b"".join(map(COMPRESS[name], parts)))
    assert b"".join(parts) == read(path)


@formats
def test_a_file_that_is_cut_off_anywhere_is_never_read_in_silence(
    tmp_path: Path, name: str
) -> None:
    data = COMPRESS[name](TEXT)
    second = COMPRESS[name](TEXT[:40])
    path = tmp_path / f"a.txt.{name}"
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(CorpusError, match=r"is cut off|but is not") as error:
            read(path)
        assert str(error.value).startswith(str(path))
        if "cut off" in str(error.value):
            assert f"ends after byte {end}, in the middle" in str(error.value)
    for end in range(1, len(second)):
        path.write_bytes(data + second[:end])
        with pytest.raises(CorpusError, match=r"is cut off|holds something that is not"):
            read(path)


@formats
def test_a_file_that_is_damaged_anywhere_is_never_read_as_something_else(
    tmp_path: Path, name: str
) -> None:
    data = COMPRESS[name](TEXT)
    path = tmp_path / f"a.txt.{name}"
    refused = 0
    for place in range(len(data)):
        for bit in (0, 5):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                assert read(path) == TEXT
            except CorpusError:
                refused += 1
    assert refused > len(data)


@formats
def test_something_else_after_the_compressed_data_is_named_by_its_place(
    tmp_path: Path, name: str
) -> None:
    data = COMPRESS[name](TEXT)
    path = write(tmp_path, f"a.txt.{name}", data + b"more text follows")
    with pytest.raises(CorpusError, match=f"something that is not .* after byte {len(data)};"):
        read(path)


def test_xz_may_be_padded_with_zeros(tmp_path: Path) -> None:
    data = COMPRESS["xz"](b"one ")
    path = write(tmp_path, "a.txt.xz", data + bytes(8) + data + bytes(4))
    assert read(path) == b"one one "
    write(tmp_path, "a.txt.xz", data + bytes(3))
    with pytest.raises(CorpusError, match=f"not xz after byte {len(data)}"):
        read(path)


@formats
def test_a_name_that_promises_another_compression_is_refused(tmp_path: Path, name: str) -> None:
    other = "gz" if name != "gz" else "xz"
    for data in (COMPRESS[other](TEXT), b"plain text", b"x"):
        path = write(tmp_path, f"a.txt.{name}", data)
        with pytest.raises(CorpusError, match=rf"a.txt.{name} is named \.{name} but is not "):
            read(path)


@formats
def test_a_compressed_file_whose_name_does_not_say_so_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "a.txt", COMPRESS[name](TEXT))
    with pytest.raises(CorpusError, match=rf"a.txt is .*; let it end in \.{name}"):
        read(path)
    assert name == compression_of(COMPRESS[name](b""))


@formats
def test_a_file_that_is_made_to_fill_a_disk_is_refused_early(tmp_path: Path, name: str) -> None:
    piece = COMPRESS[name](bytes(64 * MIB))
    path = write(tmp_path, f"a.bin.{name}", piece + COMPRESS[name](bytes(9 * MIB)))
    (file,) = find_files([str(path)]).files
    size = 0

    def drain() -> None:
        nonlocal size
        with open_stream(file, FileRead(), quiet) as stream:
            while block := stream.read(MIB):
                size += len(block)

    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"more than 1000 times its size .* decompress it by han"):
        drain()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size <= 72 * MIB
    assert peak < 16 * MIB  # 8 of them are the window of xz


@pytest.mark.parametrize("name", ["gz", "zst"])
def test_repeated_text_of_a_common_size_is_no_bomb(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"a.bin.{name}", COMPRESS[name](bytes(60 * MIB)))
    assert len(read(path, MIB)) == 60 * MIB


def test_an_xz_file_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(TEXT, filters=filters))
    place = data.index(b"\x21\x01") + 2  # the dictionary's size in the header of the block
    data[place] = 38  # 2 GiB
    path = write(tmp_path, "a.txt.xz", bytes(data))
    with pytest.raises(CorpusError, match=r"a.txt.xz is damaged after byte 0"):
        read(path)
