from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import spans
from exporters.spans import (
    Spans,
    WindowRule,
    count_windows,
    covered,
    document_spans,
    find_windows,
    list_windows,
    whole_stream,
)
from tests.plainwindows import plain_held, plain_windows

LENGTHS = st.lists(st.integers(0, 14), min_size=1, max_size=12)
RULES = st.fixed_dictionaries(
    {
        "context_length": st.integers(1, 6),
        "stride": st.integers(1, 9),
        "tail": st.sampled_from(["drop", "pad"]),
        "boundaries": st.sampled_from(["ignore", "split"]),
        "most": st.sampled_from([None, 1, 4]),
    }
)


def rule_of(drawn: dict[str, Any]) -> WindowRule:
    return WindowRule(
        context_length=drawn["context_length"],
        stride=drawn["stride"],
        split=drawn["boundaries"] == "split",
        pad=drawn["tail"] == "pad",
        most=drawn["most"],
    )


def spans_of(lengths: list[int], part: int, boundaries: str) -> Iterator[Spans]:
    """The spans of documents of so many tokens, of whose starts so many stand in a part."""
    tokens = torch.tensor(lengths)
    if boundaries == "ignore":
        return whole_stream(sum(lengths))
    starts = (tokens.cumsum(0) - tokens).split(part)  # type: ignore[no-untyped-call]
    return document_spans(iter(starts), sum(lengths))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(lengths=LENGTHS, drawn=RULES, part=st.integers(1, 5), block=st.integers(1, 4))
def test_windows_and_counts_are_those_of_plain_loops(
    lengths: list[int], drawn: dict[str, Any], part: int, block: int
) -> None:
    expected = plain_windows(lengths, **drawn)
    rule, boundaries = rule_of(drawn), drawn["boundaries"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK", block)
        listed = list(list_windows(spans_of(lengths, part, boundaries), rule))
    assert max([len(places.start) for places in listed], default=0) <= block
    found = [
        pair for places in listed for pair in zip(*map(torch.Tensor.tolist, places), strict=True)
    ]
    assert found == expected
    counts = count_windows(spans_of(lengths, part, boundaries), rule)
    length = rule.context_length
    assert counts.windows == len(expected)
    assert counts.padded_windows == sum(pairs < length for _, pairs in expected)
    assert counts.padded_places == sum(length - pairs for _, pairs in expected)
    assert counts.held_tokens == plain_held(expected)
    own = lengths if rule.split else [sum(lengths)]
    assert counts.longest_span == max(own)
    least = 2 if rule.pad else length + 1
    assert counts.fruitful_spans == sum(tokens >= least for tokens in own)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(lengths=LENGTHS, drawn=RULES, part=st.integers(1, 5), seed=st.integers(0, 99))
def test_windows_are_found_by_their_numbers_in_any_order(
    lengths: list[int], drawn: dict[str, Any], part: int, seed: int
) -> None:
    drawn = drawn | {"most": None}
    expected = plain_windows(lengths, **drawn)
    rule, boundaries = rule_of(drawn), drawn["boundaries"]
    if expected:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(0, len(expected), (9,), generator=generator)
        found = find_windows(spans_of(lengths, part, boundaries), rule, index)
        places = zip(found.start.tolist(), found.pairs.tolist(), strict=True)
        assert list(places) == [expected[number] for number in index.tolist()]
    beyond = torch.tensor([len(expected)])
    with pytest.raises(ValueError, match=f"there are {len(expected)} windows"):
        find_windows(spans_of(lengths, part, boundaries), rule, beyond)


@pytest.mark.parametrize("pad", [False, True], ids=["drop", "pad"])
@pytest.mark.parametrize(
    ("context_length", "stride"), [(2**63 - 1, 2**63 - 1), (1, 2**63 - 1), (2**63 - 1, 1)]
)
def test_options_of_any_size_do_not_overflow(context_length: int, stride: int, pad: bool) -> None:
    rule = WindowRule(
        context_length=context_length, stride=stride, split=False, pad=pad, most=2**70
    )
    counts = count_windows(whole_stream(100), rule)
    expected = plain_windows([100], min(context_length, 200), min(stride, 200), "ignore", "pad")
    held = [window for window in expected if pad or window[1] == context_length]
    assert (counts.windows, counts.held_tokens) == (len(held), plain_held(held))


def test_what_stretches_cover_is_counted_once() -> None:
    assert covered(torch.tensor([5, 0, 3, 20, 5]), 4) == len(
        {*range(4), *range(3, 9), *range(20, 24)}
    )
