import pytest
import torch

from exporters.windows import WindowPlan
from jobs.errors import CorpusError
from jobs.windows import plan_random, plan_sequential
from tests.helpers import GOLDEN


def dropped(plan: WindowPlan, tokens: int) -> int:
    """Counted by marking every token that a window holds."""
    held = torch.zeros(tokens, dtype=torch.bool)
    for start in plan.starts(0, plan.count).tolist():
        assert 0 <= start <= tokens - plan.context_length - 1
        held[start : start + plan.context_length + 1] = True
    return int((~held).sum())


@pytest.mark.parametrize("tokens", [5, 6, 8, 9, 23, 100])
@pytest.mark.parametrize("stride", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("most", [None, 2])
def test_sequential_windows_and_the_tokens_they_drop(
    tokens: int, stride: int, most: int | None
) -> None:
    plan = plan_sequential(tokens, 4, stride, most)
    fit = [start for start in range(0, tokens, stride) if start + 4 + 1 <= tokens]
    assert fit[:most] == plan.starts(0, plan.count).tolist()
    assert dropped(plan, tokens) == plan.dropped_tokens


def test_random_windows_are_drawn_as_the_notebook_draws_them() -> None:
    plan = plan_random(69, 16, 4, 1, GOLDEN["seed_that_draws_these_starts"])
    assert GOLDEN["window_starts"] == plan.starts(0, 4).tolist()
    assert dropped(plan, 69) == plan.dropped_tokens


def test_random_batches_follow_one_another_from_one_generator() -> None:
    plan = plan_random(1000, 16, 3, 5, seed=9)
    generator = torch.Generator().manual_seed(9)
    for batch in range(5):
        expected = torch.randint(0, 984, (3,), generator=generator)
        assert torch.equal(expected, plan.starts(3 * batch, 3 * batch + 3))
    assert dropped(plan, 1000) == plan.dropped_tokens


@pytest.mark.parametrize("tokens", [0, 1, 16])
def test_a_stream_shorter_than_a_window_and_its_target_is_an_error(tokens: int) -> None:
    with pytest.raises(CorpusError, match=f"has {tokens} tokens.*16.*need 17"):
        plan_sequential(tokens, 16, 16)
    with pytest.raises(CorpusError, match=f"has {tokens} tokens"):
        plan_random(tokens, 16, 4, 1, 0)


def test_one_window_more_than_fits_is_not_made() -> None:
    assert plan_sequential(17, 16, 16).count == 1
    assert plan_sequential(32, 16, 16).count == 1
    assert plan_sequential(33, 16, 16).count == 2
