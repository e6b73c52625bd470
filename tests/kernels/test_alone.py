import threading
import time

import pytest
import torch

from kernels.alone import each_alone, lone_threads


@pytest.mark.parametrize("products", [0, 1e12], ids=["small", "large"])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_item_is_worked_at_once_by_one_thread(
    threads: int, count: int, products: float
) -> None:
    done: list[int] = []
    shared: set[int] = set()

    def work(item: int) -> None:
        shared.add(torch.get_num_threads())
        done.append(item)

    each_alone(work, range(count), products)
    assert sorted(done) == list(range(count))
    assert shared == ({1} if count else set())
    assert torch.get_num_threads() == threads


def test_as_many_are_worked_at_as_torch_has_threads(threads: int) -> None:
    barrier = threading.Barrier(threads, timeout=30)
    each_alone(lambda _: barrier.wait(), range(2 * threads), 1e12)


@pytest.mark.parametrize("products", [0, 1e12], ids=["small", "large"])
@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_ends_it_and_nothing_else_is_begun(
    threads: int, wrong: int, products: float
) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == wrong:
            raise KeyError("wrong")
        time.sleep(1.0 if item == 0 else 0.01)

    with pytest.raises(KeyError, match="wrong"):
        each_alone(work, range(300), products)
    assert len(begun) < 50
    assert torch.get_num_threads() == threads


def test_threads_that_start_later_get_what_torch_had(threads: int) -> None:
    with lone_threads(2, "test") as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [threads]
