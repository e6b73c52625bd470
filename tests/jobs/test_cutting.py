import hashlib
from functools import partial
from pathlib import Path

import pytest

from jobs import cutting
from jobs.config import JobConfig
from jobs.cutting import Cut, cuts, read_settings, tasks
from jobs.done import Done
from jobs.errors import ChangedCorpusError
from jobs.inputs.files import Corpus, find_files
from jobs.inputs.read import Reader
from jobs.inputs.segments import Ids
from tests.formats import tokenizer
from tests.helpers import write_corpus

TEXT = "one fish, two fish, red fish, blue fish, and some more\n" * 9


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = write_corpus(tmp_path / "corpus", a=TEXT, b="tiny", c=TEXT.upper())
    return find_files((str(folder),), out=tmp_path / "out", format=None, skip_empty=False)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """One that cuts after few bytes."""
    config = JobConfig(corpus=("any",), out=tmp_path / "out", tokenizer="gpt2")
    return Reader(read_settings(config, tokenizer("gpt2")), print, None, block=64)


def all_cuts(corpus: Corpus, reader: Reader) -> list[Cut]:
    return list(cuts(corpus, reader, Done(), lambda read: None))


def data(cut: Cut) -> bytes:
    assert cut.segment is not None
    assert not isinstance(cut.segment, Ids)
    return bytes(cut.segment.data)


def test_segments_hold_every_byte_of_every_file_in_order(corpus: Corpus, reader: Reader) -> None:
    found = all_cuts(corpus, reader)
    for index, file in enumerate(corpus.files):
        of_file = [cut for cut in found if cut.file == index]
        text = Path(file.location).read_bytes()
        assert b"".join(data(cut) for cut in of_file[:-1]) == text
        assert of_file[-1].segment is None
        assert (of_file[-1].read, of_file[-1].digest) == (
            len(text), hashlib.sha256(text).hexdigest()
        )  # fmt: skip
    assert sum(cut.file == 0 for cut in found) > 4


@pytest.mark.parametrize("place", [1, 3])
def test_what_is_done_is_skipped_and_its_bytes_are_told(
    corpus: Corpus, reader: Reader, place: int
) -> None:
    every = all_cuts(corpus, reader)
    done = Done(segments=place, digest=every[place - 1].digest)
    told: list[int] = []
    assert list(cuts(corpus, reader, done, told.append)) == every[place:]
    assert told == [cut.read for cut in every[:place]]


def test_whole_files_are_not_read_again(corpus: Corpus, reader: Reader) -> None:
    every = all_cuts(corpus, reader)
    Path(corpus.files[0].location).unlink()
    done = Done(files=[{"tokens": 1}])
    assert list(cuts(corpus, reader, done, lambda read: None)) == [
        cut for cut in every if cut.file > 0
    ]


def test_segments_that_are_others_now_are_told(corpus: Corpus, reader: Reader) -> None:
    done = Done(segments=2, digest="0" * 64)
    with pytest.raises(ChangedCorpusError, match=r"a\.txt"):
        list(cuts(corpus, reader, done, lambda read: None))


@pytest.mark.parametrize("size", [1, 150, 1 << 20])
def test_tasks_hold_each_segment_once_and_end_as_soon_as_they_are_large_enough(
    corpus: Corpus, reader: Reader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(cutting, "TASK_BYTES", size)
    every = all_cuts(corpus, reader)
    found = list(tasks(iter(every)))
    assert [cut for task in found for cut in task] == every
    weight = partial(map, lambda cut: 1024 if cut.segment is None else len(data(cut)))
    for task in found[:-1]:
        assert sum(weight(task[:-1])) < size <= sum(weight(task))
