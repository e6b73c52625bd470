from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from exporters.errors import ExportError, OtherTokensError
from exporters.tokens import IdSet, TokenStream, TokenWriter


def begin(writer: TokenWriter, ids: NDArray[Any]) -> None:
    """Add a document."""
    writer.append(ids, np.array([0]))


def write(root: Path, documents: list[list[int]], part_tokens: int) -> TokenStream:
    writer = TokenWriter(root, part_tokens)
    for ids in documents:
        begin(writer, np.array(ids, dtype=np.uint32))
    return TokenStream(root, writer.close())


@settings(deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 2**20), max_size=9), min_size=1, max_size=9),
    part_tokens=st.integers(1, 7),
    data=st.data(),
)
def test_any_stretch_reads_back_across_parts(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    part_tokens: int,
    data: st.DataObject,
) -> None:
    stream = write(tmp_path_factory.mktemp("tokens"), documents, part_tokens)
    begun = np.cumsum([0, *map(len, documents)])
    assert begun[:-1].tolist() == stream.starts(0, stream.tokens + 1).tolist()
    ids = [i for document in documents for i in document]
    owners = [number for number, document in enumerate(documents) for _ in document]
    assert len(ids) == stream.tokens
    if not ids:
        return
    start = data.draw(st.integers(0, len(ids) - 1))
    stop = data.draw(st.integers(start + 1, len(ids)))
    assert ids[start:stop] == stream.read(start, stop).tolist()
    assert owners[start:stop] == stream.documents(start, stop).tolist()


def test_the_files_are_as_the_format_says(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [4], [5, 6]], part_tokens=4)
    first = load_file(tmp_path / "tokens/tokens-00001.safetensors")
    second = load_file(tmp_path / "tokens/tokens-00002.safetensors")
    assert first["input_ids"].tolist() == [1, 2, 3, 4]
    assert first["input_ids"].dtype == np.int32
    assert first["document_starts"].tolist() == [0, 3]
    assert second["input_ids"].tolist() == [5, 6]
    assert second["document_starts"].tolist() == [4]
    assert second["document_starts"].dtype == np.int64


def test_documents_may_begin_within_what_is_added_and_at_its_end(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, 4)
    writer.append(np.array([1, 2, 3, 4]), np.array([0, 2, 4, 4]))
    writer.append(np.array([5, 6, 7]), np.array([1, 3]))
    writer.append(np.array([]), np.array([0]))
    stream = TokenStream(tmp_path, writer.close())
    assert writer.documents == 7
    assert stream.starts(0, 8).tolist() == [0, 2, 4, 4, 5, 7, 7]
    assert stream.starts(3, 7).tolist() == [4, 4, 5]
    assert stream.documents(0, 7).tolist() == [0, 0, 1, 1, 3, 4, 4]


def test_the_writer_counts(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path)
    for ids in ([3, 9], [], [4]):
        begin(writer, np.array(ids, dtype=np.uint32))
    assert (writer.tokens, writer.documents, writer.seen.largest) == (3, 3, 9)


def test_a_separator_belongs_to_the_document_before_it(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path)
    begin(writer, np.array([1, 2]))
    writer.append(np.array([50256]))
    begin(writer, np.array([3]))
    stream = TokenStream(tmp_path, writer.close())
    assert torch.equal(torch.tensor([0, 0, 0, 1], dtype=torch.int32), stream.documents(0, 4))


def test_the_distinct_ids_are_counted_without_their_stream() -> None:
    seen = IdSet()
    for ids in ([7, 7, 3], [], [300_000, 3]):
        seen.add(np.array(ids, dtype=np.uint32))
    assert seen.ids().tolist() == [3, 7, 300_000]
    assert seen.ids().dtype == torch.int32
    assert (len(seen), seen.largest) == (3, 300_000)


def test_threads_may_read_different_parts_at_once(tmp_path: Path) -> None:
    documents = [[7] * 50 for _ in range(200)]
    stream = write(tmp_path, documents, part_tokens=100)

    def owners(start: int) -> list[int]:
        return stream.documents(start, start + 60).tolist()

    starts = [(37 * turn) % 9900 for turn in range(2000)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(owners, starts))
    assert found == [[place // 50 for place in range(s, s + 60)] for s in starts]


def started_again(tmp_path: Path, documents: list[list[int]]) -> None:
    """Write [1, 2], [3, 4, 5 | 6, 7, 8] with the last two parts kept, then give documents again."""
    writer = TokenWriter(tmp_path, 5)
    for ids in ([1, 2], [3, 4, 5, 6, 7, 8]):
        begin(writer, np.array(ids))
    kept = writer.close()
    assert len(kept) == 2
    again = TokenWriter(tmp_path, 5, kept=kept, start=2, documents=1)
    for ids in documents:
        begin(again, np.array(ids, dtype=np.uint32))
    assert again.close()[:2] == kept


def test_what_is_given_again_is_compared_and_not_written_again(tmp_path: Path) -> None:
    started_again(tmp_path, [[3, 4, 5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([[3, 4, 5, 6, 7, 9]], "the ids from token 2 on are others"),
        ([[3, 4, 5, 6], [7, 8]], "documents begin elsewhere from token 6 on"),
        ([[3, 4, 5, 6, 7]], "the stream ends at token 7, before it did"),
        ([], "the stream ends at token 2, before it did"),
        ([[3, 4, 5, 6, 7, 8, 9]], "the stream goes on at token 8, where it ended"),
    ],
)
def test_other_tokens_than_those_that_are_kept_are_an_error(
    tmp_path: Path, documents: list[list[int]], reason: str
) -> None:
    with pytest.raises(OtherTokensError, match=reason):
        started_again(tmp_path, documents)


def test_a_part_that_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path)
    writer.append(np.array([1, 2]))
    (part,) = writer.close()
    path = tmp_path / part.file.name
    path.write_bytes(b"half")
    with pytest.raises(ExportError, match=f"{path} is not a safetensors file"):
        TokenStream(tmp_path, [part])
