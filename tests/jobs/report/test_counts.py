from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from exporters.manifest import read_manifest
from exporters.reading import open_stream
from jobs.report import counts as module
from jobs.report.counts import Counts, count, thinned
from jobs.tokenizer import load_encoding
from tests.helpers import SMALL, succeed, write_corpus

TEXTS = {"a": "One fish, two fish.\n" * 30, "b": "x", "c": "red fish " * 7, "d": "blue"}


def counted(folder: Path) -> Counts:
    corpus = write_corpus(folder / "corpus", **TEXTS)
    succeed("run", corpus, "--out", folder / "out", *SMALL)
    stream = open_stream(folder / "out", read_manifest(folder / "out"))
    done: list[int] = []
    found = count(folder / "out", stream, done.append)
    assert sum(done) == stream.tokens
    return found


@pytest.mark.parametrize("step", [7, 1 << 22])
def test_tokens_and_documents_are_those_of_tiktoken(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP", step)
    encoding = load_encoding("cl100k_base")
    documents = [encoding.encode_text(text).tolist() for text in TEXTS.values()]
    documents = [[*ids, 100257] for ids in documents[:-1]] + documents[-1:]
    times = Counter(i for ids in documents for i in ids)
    found = counted(tmp_path)
    assert dict(times) == dict(zip(found.ids.tolist(), found.times.tolist(), strict=True))
    assert sorted(times.values(), reverse=True) == found.times.tolist()
    lengths = [len(ids) for ids in documents]
    assert max(lengths) == found.longest
    assert len(documents) == found.lengths.sum()
    for bits, amount in enumerate(found.lengths[1:], 1):
        assert sum(2 ** (bits - 1) <= length < 2**bits for length in lengths) == amount


def test_ranks_are_all_or_thinned_evenly() -> None:
    assert thinned(5, 300).tolist() == [1, 2, 3, 4, 5]
    ranks = thinned(100_000, 300)
    assert (ranks[0], ranks[-1]) == (1, 100_000)
    assert len(ranks) <= 300
    assert bool((np.diff(ranks) > 0).all())
