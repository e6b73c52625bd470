"""Workers that die or cannot be fed, on a stand-in for Ray; test_cluster.py has a real one."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import exceptions

from jobs import actors, cluster, worker
from jobs.actors import ATTEMPTS, Pool
from jobs.errors import ClusterError, TokenizerError, WorkerError
from kernels.errors import QkvmillError

SECONDS = 20
DEAD = exceptions.ActorDiedError()
EXPECTED = worker.Expected(
    versions={}, computing=None, place={}, out=Path("out"), holder="", scratch=None
)

Answer = Callable[["StandIn", Callable[..., Any], tuple[Any, ...]], Any]


class StandIn:
    """An actor: what is asked of it is answered at once, by a function."""

    def __init__(self, answer: Answer, number: int) -> None:
        self.number = number
        self.call = SimpleNamespace(
            remote=lambda function, *arguments: answer(self, function, arguments)
        )


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer, int], Pool]]:
    """Makes pools whose actors answer by a function; exceptions are raised when they are got."""
    pools: list[Pool] = []
    notes: list[str] = []

    def made(answer: Answer, count: int) -> Pool:
        numbers = itertools.count()

        def start() -> StandIn:
            return StandIn(answer, next(numbers))

        def get(answered: Any) -> Any:
            if isinstance(answered, BaseException) and not isinstance(answered, QkvmillError):
                raise answered
            return "node", answered

        monkeypatch.setattr(actors, "ray", SimpleNamespace(
            remote=lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start)),
            kill=lambda _: None, wait=lambda references, timeout: (references, []), get=get,
        ))  # fmt: skip
        pools.append(Pool(count, 0, EXPECTED, notes.append))
        return pools[-1]

    yield made
    for each in pools:
        each.close()


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(SECONDS).value for future in futures]


def test_tasks_are_done(pool: Callable[..., Pool]) -> None:
    started = pool(lambda actor, function, arguments: sum(arguments) if arguments[1:] else None, 3)
    assert results([started.submit(sum, n, 1) for n in range(50)]) == list(range(1, 51))


@pytest.mark.parametrize("depth", [1, 2])
def test_every_first_worker_may_die_while_it_starts_or_works(
    pool: Callable[..., Pool], depth: int
) -> None:
    seen: dict[int, list[int]] = {}  # of each thread, its actors

    def answer(actor: StandIn, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        own = seen.setdefault(threading.get_ident(), [])
        if actor.number not in own:
            own.append(actor.number)
        dies = len(own) == 1 or (len(own) == 2 and function is sum)
        return DEAD if dies else arguments[0]

    started = pool(answer, 12)
    started.depth = depth
    assert results([started.submit(sum, n) for n in range(30)]) == list(range(30))


def test_what_kills_every_worker_is_given_up(pool: Callable[..., Pool]) -> None:
    asked: list[int] = []

    def answer(actor: StandIn, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if function is not sum:
            return None
        asked.append(arguments[0])
        return DEAD if arguments[0] == 7 else arguments[0]

    started = pool(answer, 2)
    bad, good = started.submit(sum, 7), started.submit(sum, 8)
    with pytest.raises(WorkerError, match=f"^{ATTEMPTS} workers of the cluster died, one after"):
        bad.result(SECONDS)
    assert good.result(SECONDS).value == 8
    assert asked.count(7) == ATTEMPTS


def test_an_error_of_its_own_is_raised_once(pool: Callable[..., Pool]) -> None:
    asked: list[str] = []

    def answer(actor: StandIn, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        asked.append(function.__name__)
        return TokenizerError("a bad text") if function is sum else None

    with pytest.raises(TokenizerError, match="a bad text"):
        pool(answer, 2).submit(sum, 1).result(SECONDS)
    assert asked.count("sum") == 1


@pytest.mark.parametrize("error", [exceptions.OutOfDiskError("no room"), ValueError("no room")])
def test_arguments_that_cannot_be_sent_end_the_job(
    pool: Callable[..., Pool], error: Exception
) -> None:
    def answer(actor: StandIn, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if function is sum:
            raise error
        return None

    started = pool(answer, 2)
    expected = ValueError if isinstance(error, ValueError) else ClusterError
    for future in [started.submit(sum, n) for n in range(5)]:
        with pytest.raises(expected, match="no room"):
            future.result(SECONDS)


@pytest.mark.parametrize(
    ("answered", "expected", "said"),
    [
        (ClusterError("it has torch 1, the job torch 2"), ClusterError, "cannot be used: it has"),
        (exceptions.RuntimeEnvSetupError("no space"), ClusterError, "Ray could not go on: Runtime"),
        (DEAD, WorkerError, f"{ATTEMPTS} workers of the cluster died"),
    ],
    ids=["refused", "without-code", "dies"],
)
def test_workers_that_cannot_be_had_end_the_job(
    pool: Callable[..., Pool], answered: Exception, expected: type[Exception], said: str
) -> None:
    started = pool(lambda *_: answered, 2)
    with pytest.raises(expected, match=said):
        started.submit(sum, 1).result(SECONDS)
    with pytest.raises(expected, match=said):  # also what is asked of it later
        started.submit(sum, 2).result(SECONDS)


def test_a_cluster_without_cpus_or_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resources: dict[str, float] = {}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr(worker, "holder_of", lambda _: "")
    config: Any = SimpleNamespace(out=Path("out"), scratch=None, dtype="float32", tf32=False)
    rest: Any = None
    with pytest.raises(ClusterError, match="no CPUs for workers"):
        cluster._Cluster(config, rest, None, rest)
    resources["CPU"] = 2.0
    cluster._Cluster(config, rest, None, rest)
    backend: Any = SimpleNamespace(device=torch.device("cuda:0"))
    with pytest.raises(ClusterError, match="Ray knows of no GPU in the cluster"):
        cluster._Cluster(config, rest, backend, rest)
