"""Ray actors as workers: each fed by a thread of the job, and replaced where it dies.

What a worker or a node that dies was at goes to another one; a task raises an error of its own
once. Ray's own restarts are not used: an actor that finds no room again would keep its task.
"""

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, PriorityQueue
from typing import Any, NamedTuple

import ray
from ray import exceptions

from jobs import worker
from jobs.connect import cluster_error, first_line, last_line
from jobs.errors import ClusterError, WorkerError
from kernels.errors import QkvmillError

log = logging.getLogger(__name__)

ATTEMPTS = 10  # of a task whose workers die, and of starting one
CREATION = "error raised in its creation task"  # by an actor that can be made nowhere
PATIENCE_SECONDS = 20.0  # until it is said that workers are waited for
LOOK_SECONDS = 0.2  # between looks at whether the pool is closed

DEATHS = (
    exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError,
    exceptions.ObjectLostError, exceptions.OutOfMemoryError, exceptions.LocalRayletDiedError,
)  # fmt: skip
"""What Ray raises where a worker, or its node, is gone."""


class _Actor:
    """A worker: calls functions of jobs/worker.py, and says on which node it is."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
        """The node and the result, which may be a QkvmillError."""
        try:
            result = function(*arguments)
        except QkvmillError as error:
            result = error
        node = f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"
        return node, result


class Done(NamedTuple):
    """What a worker gave, and where."""

    node: str
    value: Any


@dataclass(order=True)
class _Task:
    """Something for a worker to do; the first that was given is done first."""

    number: int
    function: Callable[..., Any] = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    future: "Future[Done]" = field(compare=False)
    deaths: int = field(default=0, compare=False)


class Pool:
    """Workers that are started at once and replaced where they die, until the pool is closed."""

    def __init__(
        self, count: int, gpus: int, expected: worker.Expected, note: Callable[[str], None]
    ) -> None:
        self.count = count
        self.depth = 1  # tasks that a worker is given at once
        self._gpus = gpus
        self._expected = expected
        self._note = note
        self._tasks: PriorityQueue[_Task] = PriorityQueue()
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._broken: BaseException | None = None
        self._stillborn: Counter[int] = Counter()  # by thread: since one of its workers was not
        self._waits = False  # whether it was said that workers are waited for
        self._threads = [
            threading.Thread(target=self._serve, name=f"worker-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Done]":
        """Let a worker call a function of jobs/worker.py; ObjectRefs among arguments are fetched.

        The future raises what the function raised, or WorkerError where workers kept dying.
        """
        task = _Task(next(self._numbers), function, arguments, Future())
        self._tasks.put(task)
        if self._broken is not None:
            self._fail_all(self._broken)
        return task.future

    def close(self) -> None:
        """End all workers, whatever they are at."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """Feed workers, one after another, until the pool is closed."""
        try:
            while not self._over.is_set():
                self._feed_one()
        except exceptions.RayError as error:
            self._break(cluster_error(error))
        except BaseException as error:  # which the job is to raise, not this thread
            self._break(error)

    def _feed_one(self) -> None:
        """Start a worker and give it tasks until it dies or the pool is closed."""
        actor = ray.remote(_Actor).options(num_cpus=1, num_gpus=self._gpus).remote()
        running: deque[tuple[_Task, Any]] = deque()  # with the references to what they give
        try:
            if self._is_ready(actor):
                while not self._over.is_set() and self._settle_next(actor, running):
                    pass
        except BaseException as error:
            known = cluster_error(error) if isinstance(error, exceptions.RayError) else error
            for task, _ in running:
                task.future.set_exception(known)
            raise
        finally:
            ray.kill(actor)

    def _is_ready(self, actor: Any) -> bool:
        """Whether a worker could be started; waits for as long as the cluster has no room for it.

        Raises:
            ClusterError: if it cannot do the job.
            WorkerError: if workers keep dying as they are started.
        """
        thread = threading.get_ident()
        try:
            done = self._wait_for(actor.call.remote(worker.check, self._expected), patient=False)
        except DEATHS as error:
            if CREATION in str(error):
                raise ClusterError(
                    f"workers of the cluster cannot be started: {last_line(error)}; install the "
                    "same packages on all nodes"
                ) from error
            self._stillborn[thread] += 1
            if self._stillborn[thread] >= ATTEMPTS:
                raise WorkerError(
                    f"{ATTEMPTS} workers of the cluster died, one after another, as they were "
                    f"started: {first_line(error)}"
                ) from error
            return False
        if done is None:
            return False
        if isinstance(done.value, QkvmillError):
            raise ClusterError(f"the worker on {done.node} cannot be used: {done.value}")
        self._stillborn[thread] = 0
        log.info("a worker of the cluster is ready on %s", done.node)
        return True

    def _settle_next(self, actor: Any, running: "deque[tuple[_Task, Any]]") -> bool:
        """Give a worker tasks, wait for the first of them; returns whether the worker still lives.

        With a second task at hand, a worker does not wait for the job while that takes the first.
        """
        while len(running) < self.depth:
            try:
                task = self._tasks.get(not running, LOOK_SECONDS)
            except Empty:
                break
            try:
                reference = actor.call.remote(task.function, *task.arguments)
            except BaseException:  # as where the arguments find no room
                running.append((task, None))
                raise
            running.append((task, reference))
        if not running:
            return True
        task, reference = running[0]
        try:
            done = self._wait_for(reference)
        except DEATHS as error:
            self._do_again(task, error)
            for other, _ in list(running)[1:]:
                self._tasks.put(other)
            running.clear()
            return False
        except exceptions.RayTaskError as error:
            running.popleft()
            task.future.set_exception(error.cause or error)
            return True
        if done is None:
            return False
        running.popleft()
        if isinstance(done.value, QkvmillError):
            task.future.set_exception(done.value)
        else:
            task.future.set_result(done)
        return True

    def _do_again(self, task: _Task, error: Exception) -> None:
        """Give what a worker died at to another one, unless many died at it."""
        task.deaths += 1
        if task.deaths < ATTEMPTS:
            self._note(f"a worker of the cluster died: what it was at is done again "
                       f"({first_line(error)})")  # fmt: skip
            self._tasks.put(task)
            return
        task.future.set_exception(
            WorkerError(
                f"{ATTEMPTS} workers of the cluster died, one after another, at the same piece of "
                f"work: {first_line(error)}; if memory ran out, give fewer --workers; the same "
                "command resumes"
            )
        )

    def _wait_for(self, reference: Any, *, patient: bool = True) -> Done | None:
        """What a worker gives; None once the pool is closed.

        Where one is not `patient`, it is said once that the cluster has no room for a worker.
        """
        began = time.monotonic()
        while not self._over.is_set():
            ready, _ = ray.wait([reference], timeout=LOOK_SECONDS)
            if ready:
                return Done(*ray.get(reference))
            if not patient and not self._waits and time.monotonic() - began > PATIENCE_SECONDS:
                self._waits = True
                self._note("waiting for workers, which the cluster has no room for so far")
        return None

    def _break(self, error: BaseException) -> None:
        self._broken = error
        self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        """Raise an error wherever a task is waited for."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            task.future.set_exception(error)
