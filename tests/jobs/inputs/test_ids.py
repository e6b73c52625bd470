import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from jobs.errors import CorpusError
from jobs.inputs.ids import bin_ids, npy_ids, safetensors_ids
from jobs.inputs.segments import Ids
from tests.formats import read_settings

EOT = 50256


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def read_bin(data: bytes, block: int = 16, **changed: object) -> list[Ids]:
    return list(bin_ids("a.bin", io.BytesIO(data), read_settings(**changed), block))  # type: ignore[arg-type]


def read_npy(data: bytes, block: int = 16) -> list[Ids]:
    return list(npy_ids("a.npy", io.BytesIO(data), read_settings(), block))


def read_safetensors(data: bytes, base: int = 0, block: int = 16) -> list[Ids]:
    return list(safetensors_ids("a.st", io.BytesIO(data), read_settings(), base, block))


def whole(segments: list[Ids]) -> tuple[list[int], list[int]]:
    """All ids, and where documents begin among them."""
    ids: list[int] = []
    starts: list[int] = []
    for segment in segments:
        assert np.uint32 == segment.ids.dtype
        starts += (len(ids) + segment.starts).tolist()
        ids += segment.ids.tolist()
    return ids, starts


DTYPES = ["<i4", "<u2", "<i8", ">u2", ">i4", "<u8", ">u4", "<i2", "<u4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)], ids=["v1", "v2"])
def test_ids_of_any_whole_type_are_read(dtype: str, version: tuple[int, int]) -> None:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.array([5, 6, 0, 20_000, 7] * 9, dtype), version)
    assert whole(read_npy(out.getvalue())) == ([5, 6, 0, 20_000, 7] * 9, [0])


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.sampled_from([0, 1, 2, EOT]), min_size=1, max_size=30),
    block=st.integers(1, 9).map(lambda count: 8 * count),
    kind=st.sampled_from(["uint16", "uint32", "npy", "safetensors"]),
)
def test_documents_end_with_the_end_of_text(ids: list[int], block: int, kind: str) -> None:
    match kind:
        case "npy":
            found = read_npy(npy(np.array(ids)), block)
        case "safetensors":
            found = read_safetensors(save({"input_ids": np.array(ids)}), 0, block)
        case _:
            found = read_bin(np.array(ids, kind).tobytes(), block, token_dtype=kind)
    after = [place + 1 for place, token in enumerate(ids[:-1]) if token == EOT]
    assert (ids, [0, *after]) == whole(found)
    assert [True] + [False] * (len(found) - 1) == [segment.begins for segment in found]


def test_a_bin_file_is_of_16_bits_where_all_ids_fit_them() -> None:
    assert whole(read_bin(b"\1\0\2\0")) == ([1, 2], [0])
    with pytest.raises(CorpusError) as refused:
        read_bin(b"\1\0\2\0", name="cl100k_base")
    assert str(refused.value) == (
        "a.bin: cl100k_base has ids beyond 16 bits; give --token-dtype, or the --tokenizer that "
        "the ids were made with"
    )
    assert whole(read_bin(b"\1\0\2\0", name="cl100k_base", token_dtype="uint16")) == ([1, 2], [0])


BAD_BIN = {
    "odd": (b"\1\0\2", "is cut short: it ends within an id or before its last"),
    "odd-in-a-later-block": (b"\1\0" * 20 + b"\2", "is cut short"),
    "not-of-the-vocabulary": (
        b"\1\0" * 9 + b"\x51\xc4",
        ": id 50257 at place 9 is no token of gpt2, which has 50257; "
        "give the --tokenizer and the --token-dtype that it was made with",
    ),
    "empty": (b"", "is empty; remove it or leave it out"),
}


@pytest.mark.parametrize(("data", "message"), BAD_BIN.values(), ids=BAD_BIN)
def test_a_bin_file_that_is_wrong_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorpusError) as refused:
        read_bin(data)
    assert str(refused.value).startswith("a.bin")
    assert message in str(refused.value)


def headed(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


LIKE = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
CUT = "is cut short: it ends within an id or before its last"
BAD_NPY = {
    "2-D": (
        npy(np.zeros((2, 3), int)),
        "holds int64 of shape (2, 3); one row of whole numbers is read",
    ),
    "0-D": (npy(np.array(3)), "holds int64 of shape (); one row of whole numbers is read"),
    "objects": (npy(np.array([{}]), allow_pickle=True), "holds object of shape (1,); "),
    "floats": (npy(np.zeros(3)), "holds float64 of shape (3,); "),
    "texts": (npy(np.array(["a"])), "of shape (1,); one row of whole numbers is read"),
    "empty": (npy(np.zeros(0, int)), "is empty; remove it or leave it out"),
    "cut-in-an-id": (npy(np.zeros(9, int))[:-1], CUT),
    "cut-between-ids": (npy(np.zeros(9, int))[:-8], CUT),
    "only-a-header": (npy(np.zeros(9, int))[:-72], CUT),
    "more-than-it-says": (
        npy(np.zeros(9, int)) + b"\0",
        "goes on after the 9 ids that it announces",
    ),
    "negative": (npy(np.array([3, -1])), ": id -1 at place 1 is no token of gpt2"),
    "too-large": (npy(np.array([2**63], np.uint64)), ": id 9223372036854775808 at place 0 is no"),
    "text": (b"one two three\n" * 9, "could not be read as .npy: "),
    "zip": (b"PK\3\4" + bytes(99), "could not be read as .npy: "),
    "nothing": (b"", "could not be read as .npy: "),
    "version-3": (b"\x93NUMPY\x03\x00" + bytes(99), "could not be read as .npy: "),
    "negative-shape": (headed(LIKE.format("'<i8'", "(-1,)")), "holds int64 of shape (-1,); "),
    "huge-shape": (headed(LIKE.format("'<i8'", f"({10**30},)"), bytes(80)), CUT),
    "header-is-code": (headed("__import__('os').getcwd()\n"), "could not be read as .npy: "),
    "header-is-open": (headed("{'descr': ('''\n"), "could not be read as .npy: "),
    "header-is-deep": (headed("(" * 5000 + "\n"), "could not be read as .npy: "),
    "header-is-indented": (headed("{\n  a\n b\n"), "could not be read as .npy: "),
    "dtype-is-unknown": (headed(LIKE.format("'zz'", "(1,)")), "could not be read as .npy: "),
    "dtype-is-a-list": (headed(LIKE.format("[1, 2]", "(1,)")), "could not be read as .npy: "),
}


@pytest.mark.parametrize(("data", "message"), BAD_NPY.values(), ids=BAD_NPY)
def test_an_npy_file_of_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorpusError) as refused:
        read_npy(data)
    assert str(refused.value).startswith("a.npy")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damage_to_an_npy_header_is_an_error_in_words() -> None:
    data = npy(np.arange(40))
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(80)] = chance.randrange(256)
        try:
            read_npy(bytes(damaged))
        except CorpusError:
            refused += 1
    assert refused > 300


def test_an_npy_file_is_read_to_its_end() -> None:
    stream = io.BytesIO(npy(np.arange(9)))
    list(npy_ids("a.npy", stream, read_settings()))
    assert stream.read() == b""


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    dtype=st.sampled_from(["<i4", "<i8", "<u2", "<u4"]),
    block=st.integers(1, 9).map(lambda count: 8 * count),
)
def test_documents_begin_where_safetensors_say(lengths: list[int], dtype: str, block: int) -> None:
    ids = np.arange(sum(lengths), dtype=dtype)
    starts = np.cumsum([0, *lengths[:-1]])
    found = read_safetensors(save({"input_ids": ids, "document_starts": starts}), 0, block)
    assert (ids.tolist(), starts.tolist()) == whole(found)
    assert [True] + [False] * (len(found) - 1) == [segment.begins for segment in found]


def test_a_file_that_goes_on_with_a_stream_begins_no_document() -> None:
    goes_on = {"input_ids": np.arange(5, dtype=np.int32), "document_starts": np.array([103])}
    (segment,) = read_safetensors(save(goes_on), 100, 64)
    assert (segment.starts.tolist(), segment.begins) == ([3], False)
    without = goes_on | {"document_starts": np.empty(0, np.int64)}
    (segment,) = read_safetensors(save(without), 100, 64)
    assert (segment.starts.tolist(), segment.begins) == ([], False)


ALONE = "goes on with a stream whose earlier files are not given before it; give the whole folder"
IDS = np.arange(5, dtype=np.int32)
BAD_SAFE: dict[str, tuple[dict[str, Any], int, str]] = {
    "no-ids": ({"ids": IDS}, 0, "has no tensor input_ids, but ids"),
    "2-D": (
        {"input_ids": IDS.reshape(1, 5)},
        0,
        ": input_ids is int32 of shape [1, 5]; one row of",
    ),
    "floats": ({"input_ids": IDS / 2}, 0, ": input_ids is F64 of shape [5]; one row of whole"),
    "starts-are-floats": (
        {"input_ids": IDS, "document_starts": IDS / 2},
        0,
        ": document_starts is no row of int64",
    ),
    "starts-of-32-bits": ({"input_ids": IDS, "document_starts": IDS}, 0, "is no row of int64"),
    "later-part": ({"input_ids": IDS, "document_starts": np.array([103])}, 0, ALONE),
    "later-part-without-starts": (
        {"input_ids": IDS, "document_starts": np.empty(0, int)},
        0,
        ALONE,
    ),
    "later-part-that-starts": ({"input_ids": IDS, "document_starts": np.array([5])}, 0, ALONE),
    "starts-later": ({"input_ids": IDS, "document_starts": np.array([1])}, 0, ALONE),
    "another-stream": (
        {"input_ids": IDS, "document_starts": np.array([0])},
        100,
        "begins a stream, but lies beside files of another; give each stream as a "
        "folder of its own",
    ),
    "a-part-is-missing": ({"input_ids": IDS, "document_starts": np.array([206])}, 100, ALONE),
    "descending": (
        {"input_ids": IDS, "document_starts": np.array([0, 3, 2])},
        0,
        "has document_starts that descend",
    ),
    "beyond": (
        {"input_ids": IDS, "document_starts": np.array([0, 6])},
        0,
        "has document_starts beyond its ids",
    ),
    "not-of-the-vocabulary": ({"input_ids": IDS + 50255}, 0, ": id 50257 at place 2 is no token"),
    "empty-with-no-starts": (
        {"input_ids": IDS[:0], "document_starts": np.empty(0, int)},
        0,
        "is empty; remove it or leave it out",
    ),
    "empty": ({"input_ids": IDS[:0]}, 0, "is empty; remove it or leave it out"),
}


@pytest.mark.parametrize(("tensors", "base", "message"), BAD_SAFE.values(), ids=BAD_SAFE)
def test_safetensors_of_anything_else_are_refused(
    tensors: dict[str, Any], base: int, message: str
) -> None:
    with pytest.raises(CorpusError) as refused:
        read_safetensors(save(tensors), base)
    assert str(refused.value).startswith("a.st")
    assert message in str(refused.value)


def test_safetensors_that_are_cut_anywhere_are_refused() -> None:
    data = save({"input_ids": IDS, "document_starts": np.array([0])})
    for size in range(len(data)):
        with pytest.raises(CorpusError, match=r"^a\.st "):
            read_safetensors(data[:size])
