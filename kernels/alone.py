"""Products whose bits do not hang on the number of threads: each is formed by one of them.

A matrix product that torch's threads share is cut otherwise for other numbers of them, and then its
sums may be rounded otherwise: MKL's are from d=2048 on in float32, and from d=4096 on in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

LEAST_PRODUCTS = 3e8  # multiplications from which starting threads costs less than it saves


def each_alone(work: Callable[[T], object], items: Sequence[T], products: float) -> None:
    """Call `work` for each item, for as many at once as torch has threads, each in one of them.

    What it raises is raised once the items that others are at are done; no more are begun.

    Args:
        products: how many numbers are multiplied for all items together.
    """
    threads = torch.get_num_threads()
    if threads == 1 or products < LEAST_PRODUCTS:
        torch.set_num_threads(1)
        try:
            for item in items:
                work(item)
        finally:
            torch.set_num_threads(threads)
        return
    with lone_threads(max(1, min(threads, len(items))), "alone") as pool:
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def lone_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which torch computes with that thread alone."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, name, torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        # What a thread of the pool set is what torch gives to threads that start later.
        torch.set_num_threads(threads)
