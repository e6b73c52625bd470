from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.spans import WindowCounts, count_more
from exporters.tokens import IdSet, TokenStream, TokenWriter
from exporters.windows import WindowPlan
from jobs.config import JobConfig
from jobs.errors import CorpusError
from jobs.windows import WindowCounter, check_counts, ids_to_compute, plan_windows, rule_of
from tests.helpers import GOLDEN
from tests.plainwindows import plain_held, plain_windows


def config(**options: Any) -> JobConfig:
    given = {"corpus": ("a.txt",), "out": Path("out"), "context_length": 4, **options}
    return JobConfig(**given)


def stream_of(folder: Path, lengths: list[int]) -> TokenStream:
    """A stream of documents of so many tokens, in parts of seven."""
    writer = TokenWriter(folder, part_tokens=7)
    for length in lengths:
        writer.append(np.arange(length), np.array([0]))
    return TokenStream(folder, writer.close())


def planned(folder: Path, lengths: list[int], **options: Any) -> WindowPlan:
    return plan_windows(config(**options), stream_of(folder, lengths), len(lengths), None)


def held(plan: WindowPlan) -> int:
    """Counted by marking every token that a window holds."""
    marks = torch.zeros(plan.tokens, dtype=torch.bool)
    for start, pairs in zip(*plan.places(0, plan.count), strict=True):
        marks[start : start + pairs + 1] = True
    return int(marks.sum())


@pytest.mark.parametrize("tokens", [5, 6, 8, 9, 23, 100])
@pytest.mark.parametrize("stride", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("most", [None, 2])
def test_sequential_windows_and_the_tokens_they_drop(
    tmp_path: Path, tokens: int, stride: int, most: int | None
) -> None:
    plan = planned(tmp_path, [tokens], stride=stride, batch_size=1, batches=most)
    fit = [start for start in range(0, tokens, stride) if start + 4 + 1 <= tokens]
    assert fit[:most] == plan.places(0, plan.count).start.tolist()
    assert held(plan) + plan.dropped_tokens == tokens


def test_random_windows_are_drawn_as_the_notebook_draws_them(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, [69], context_length=16, sampling="random", batch_size=4,
        seed=GOLDEN["seed_that_draws_these_starts"],
    )  # fmt: skip
    assert GOLDEN["window_starts"] == plan.places(0, 4).start.tolist()
    assert held(plan) + plan.dropped_tokens == 69


def test_random_batches_follow_one_another_from_one_generator(tmp_path: Path) -> None:
    drawn = {"sampling": "random", "batch_size": 3, "batches": 5, "seed": 9}
    plan = planned(tmp_path, [1000], context_length=16, **drawn)
    generator = torch.Generator().manual_seed(9)
    for batch in range(5):
        expected = torch.randint(0, 984, (3,), generator=generator)
        assert torch.equal(expected, plan.places(3 * batch, 3 * batch + 3).start)
    assert held(plan) + plan.dropped_tokens == 1000


def test_random_windows_lie_within_documents(tmp_path: Path) -> None:
    drawn = {"sampling": "random", "boundaries": "split", "batch_size": 40, "batches": 2, "seed": 3}
    lengths = [4, 9, 0, 5, 1, 6]
    plan = planned(tmp_path, lengths, **drawn)
    # Documents begin at 0, 4, 13, 13, 18 and 19; of 9, 5 and 6 tokens, 5, 1 and 2 places are left.
    valid = torch.tensor([4, 5, 6, 7, 8, 13, 19, 20])
    generator = torch.Generator().manual_seed(3)
    expected = [valid[torch.randint(0, 8, (40,), generator=generator)] for _ in range(2)]
    assert torch.equal(torch.cat(expected), plan.places(0, 80).start)
    assert plan.short_documents == 3
    assert held(plan) + plan.dropped_tokens == sum(lengths)


@pytest.mark.parametrize("tokens", [0, 1, 16])
@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_a_stream_shorter_than_a_window_and_its_target_is_an_error(
    tmp_path: Path, sampling: str, tokens: int
) -> None:
    with pytest.raises(CorpusError, match=f"has {tokens} tokens.*16.*need 17"):
        planned(tmp_path, [tokens], context_length=16, sampling=sampling)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"boundaries": "split"},
            "longest document has 4 tokens.*need 5; .*--tail pad or --boundaries ignore",
            id="split",
        ),
        pytest.param(
            {"boundaries": "split", "sampling": "random"},
            "longest document has 4 tokens.*a shorter context or --boundaries ignore",
            id="split-random",
        ),
    ],
)
def test_documents_shorter_than_a_window_are_an_error(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CorpusError, match=said):
        planned(tmp_path, [1, 4, 2], **options)


@pytest.mark.parametrize(
    ("boundaries", "lengths", "said"),
    [
        ("ignore", [1], "the corpus has 1 tokens"),
        ("split", [1, 0, 1], "the longest document has 1 tokens"),
        ("split", [], "the longest document has 0 tokens"),
    ],
    ids=["ignore", "split", "empty"],
)
def test_padding_needs_an_input_and_its_target(
    tmp_path: Path, boundaries: str, lengths: list[int], said: str
) -> None:
    with pytest.raises(CorpusError, match=f"{said}, but a window holds one and its target"):
        planned(tmp_path, lengths, boundaries=boundaries, tail="pad")


def test_one_window_more_than_fits_is_not_made(tmp_path: Path) -> None:
    for tokens, expected in ((17, 1), (32, 1), (33, 2)):
        plan = planned(tmp_path / str(tokens), [tokens], context_length=16)
        assert plan.count == expected


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    context_length=st.integers(1, 6),
    stride=st.integers(1, 9),
    boundaries=st.sampled_from(["ignore", "split"]),
    tail=st.sampled_from(["drop", "pad"]),
    most=st.sampled_from([None, 1, 3]),
)
def test_every_token_is_in_a_window_or_counted_as_dropped(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], most: int | None, **options: Any
) -> None:
    job = config(batch_size=1, batches=most, **options)
    counter = WindowCounter(rule_of(job))
    for length in lengths:
        counter.append(np.arange(length), np.array([0]))
    counts = counter.close()
    expected = plain_windows(lengths, **options, most=most)
    stream = stream_of(tmp_path_factory.mktemp("stream"), lengths)
    if not expected:
        with pytest.raises(CorpusError):
            check_counts(job, counts)
        with pytest.raises(CorpusError):
            plan_windows(job, stream, len(lengths), 0)
        return
    plan = plan_windows(job, stream, len(lengths), 0 if options["tail"] == "pad" else None)
    assert counts.windows == plan.count == len(expected)
    assert plain_held(expected) + plan.dropped_tokens == sum(lengths)
    assert counts.held_tokens + plan.dropped_tokens == sum(lengths)
    least = 2 if options["tail"] == "pad" else options["context_length"] + 1
    short = sum(length < least for length in lengths) if options["boundaries"] == "split" else 0
    assert plan.short_documents == short
    if options["boundaries"] == "ignore":  # elsewhere places are read from a file
        for first in range(plan.count):
            for stop in range(first + 1, plan.count + 1):
                places = plan.places(first, stop)
                found = zip(places.start.tolist(), places.pairs.tolist(), strict=True)
                assert list(found) == expected[first:stop]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_counts_do_not_hang_on_how_documents_come_in_chunks(chunk: int) -> None:
    rule = rule_of(config(boundaries="split", tail="pad", stride=3, batch_size=1, batches=7))
    lengths = torch.tensor([9, 0, 2, 30, 1, 5, 6])
    whole = count_more(WindowCounts(), lengths, rule)
    counts = WindowCounts()
    for first in range(0, len(lengths), chunk):
        counts = count_more(counts, lengths[first : first + chunk], rule)
    assert counts == whole
    assert whole.windows == 7


def test_the_padding_is_computed_where_windows_hold_it() -> None:
    seen = IdSet()
    seen.add(np.array([3, 9]))
    assert ids_to_compute(seen, 0, 5).tolist() == [3, 9]
    assert ids_to_compute(seen, 1, 5).tolist() == [3, 5, 9]
    assert ids_to_compute(seen, 1, 9).tolist() == [3, 9]
    assert ids_to_compute(seen, 0, None).tolist() == [3, 9]
