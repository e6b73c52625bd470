"""The stages of a job on a Ray cluster: workers do them, the job commits.

Each worker is an actor, fed by a thread of the job with one task at a time. What a worker or a node
that dies was at goes to another one; a task raises an error of its own once. Plain actors and not
ray.data: segments are taken in the order of the corpus, and what is finished is journalled task by
task, neither of which a dataset promises.
"""

import io
import itertools
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_futures
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, PriorityQueue
from typing import Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a job tells nobody that it runs

import ray
import torch
from ray import exceptions
from torch import Tensor

from exporters.files import adopt
from exporters.source import needed
from jobs import worker
from jobs.carried import arrived, carried
from jobs.compute import WindowJob, make_here
from jobs.config import JobConfig
from jobs.encode import Encoded, EncodeSettings
from jobs.engine import Engine
from jobs.errors import ClusterError, WorkerError
from jobs.inputs.segments import Segment
from jobs.pace import Stage
from jobs.pool import Encode, wait_for
from jobs.progress import Reporter
from jobs.shards import Made, Shard, shard_entry
from jobs.stopping import SIGNALS, StoppedError
from jobs.tokenizer import VOCABULARIES, Tokenizer
from jobs.versions import versions
from kernels.dispatch import Backend
from kernels.errors import QkvmillError
from kernels.layer import DTYPES, FirstLayer
from kernels.tables import BUILD_ROWS, Tables, join

ATTEMPTS = 10  # of a task whose workers die, and of starting one
CREATION = (
    "error raised in its creation task"  # in what Ray says where an actor cannot be made at all
)
PATIENCE_SECONDS = 20.0
LOOK_SECONDS = 0.2  # between looks at whether the job is to stop
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MOST_SAID = 200  # characters of what Ray says
CONNECT_SECONDS = 10.0
AHEAD = 2  # shards for each worker that are waiting or at work
PACKAGES = ("jobs", "exporters", "kernels")

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


class _Done(NamedTuple):
    """What a worker gave, and where."""

    node: str
    value: Any


@dataclass(order=True)
class _Task:
    """Something for a worker to do; the first that was given is done first."""

    number: int
    function: Callable[..., Any] = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    future: "Future[_Done]" = field(compare=False)
    deaths: int = field(default=0, compare=False)


class _Pool:
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

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[_Done]":
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
            self._break(_cluster_error(error))
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
            known = _cluster_error(error) if isinstance(error, exceptions.RayError) else error
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
                    f"workers of the cluster cannot be started: {_last_line(error)}; install the "
                    "same packages on all nodes"
                ) from error
            self._stillborn[thread] += 1
            if self._stillborn[thread] >= ATTEMPTS:
                raise WorkerError(
                    f"{ATTEMPTS} workers of the cluster died, one after another, as they were "
                    f"started: {_first_line(error)}"
                ) from error
            return False
        if done is None:
            return False
        if isinstance(done.value, QkvmillError):
            raise ClusterError(f"the worker on {done.node} cannot be used: {done.value}")
        self._stillborn[thread] = 0
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
                       f"({_first_line(error)})")  # fmt: skip
            self._tasks.put(task)
            return
        task.future.set_exception(
            WorkerError(
                f"{ATTEMPTS} workers of the cluster died, one after another, at the same piece of "
                f"work: {_first_line(error)}; if memory ran out, give fewer --workers; the same "
                "command resumes"
            )
        )

    def _wait_for(self, reference: Any, *, patient: bool = True) -> _Done | None:
        """What a worker gives; None once the pool is closed.

        Where one is not `patient`, it is said once that the cluster has no room for a worker.
        """
        began = time.monotonic()
        while not self._over.is_set():
            ready, _ = ray.wait([reference], timeout=LOOK_SECONDS)
            if ready:
                return _Done(*ray.get(reference))
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


class _Cluster:
    """The stages of a job, on workers that are started when they are first needed."""

    def __init__(
        self, config: JobConfig, tokenizer: Tokenizer, backend: Backend | None, reporter: Reporter
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._backend = backend
        self._reporter = reporter
        self._pool: _Pool | None = None
        self._pool_gpus = 0
        self._out = config.out.absolute() if isinstance(config.out, Path) else config.out
        self._holder = worker.holder_of(self._out) or ""
        self._scratch = config.scratch and config.scratch.absolute()
        resources = ray.cluster_resources()
        self.cpus = int(resources.get("CPU", 0))
        self._gpus = int(resources.get("GPU", 0))
        if self.cpus < 1:
            raise ClusterError("the cluster has no CPUs for workers; add a node that has some")
        if backend is not None and backend.device.type == "cuda" and self._gpus < 1:
            raise ClusterError(
                f"the job computes on {backend.device}, but Ray knows of no GPU in the cluster; "
                "start its nodes with --num-gpus, or give --device cpu"
            )
        self._computing: worker.Computing | None = None
        if backend is not None:
            self._computing = worker.Computing(
                device=backend.device.type, dtype=DTYPES[config.dtype], tf32=config.tf32
            )

    @property
    def workers(self) -> int:
        """How many tokenize."""
        return min(self._config.workers or self.cpus, self.cpus)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @contextmanager
    def encoder(
        self,
        workers: int,
        place: str | Path,
        tokenizer: Tokenizer,
        settings: EncodeSettings,
        check: Callable[[], None],
    ) -> Iterator[Encode]:
        """As jobs.pool.encoder."""
        pool = self._workers(gpus=0)
        pool.depth = 2  # these are short
        key = uuid.uuid4().hex
        files = ray.put(worker.tokenizer_files(place, tokenizer))

        def encode(segments: Sequence[Segment]) -> Callable[[], list[Encoded]]:
            check()
            future = pool.submit(worker.encode, key, files, settings, segments)

            def encoded() -> list[Encoded]:
                done = wait_for(future, check)
                found: list[Encoded] = done.value
                self._reporter.on_node(done.node, sum(len(e.ids) for e in found))
                return found

            return encoded

        yield encode
        pool.depth = 1

    def build(
        self,
        layer: FirstLayer,
        token_ids: Tensor,
        device: torch.device,
        advance: Callable[[int], None],
    ) -> Tables:
        """As kernels.tables.build, a stretch of the rows of A on each worker."""
        pool = self._workers(gpus=1 if device.type == "cuda" else 0)
        blocks = -(-len(token_ids) // BUILD_ROWS)
        step = -(-blocks // pool.count) * BUILD_ROWS  # whole blocks, as bits hang on them
        futures = []
        for first in range(0, len(token_ids), step):
            ids = token_ids[first : first + step]
            rows = replace(layer, embedding=layer.embedding[ids.long()])
            known = torch.arange(len(ids), dtype=torch.int32)
            futures.append(
                pool.submit(
                    worker.build_rows, self._computing, ray.put(carried(rows)), carried(known)
                )
            )
        parts = []
        for future in futures:
            done = wait_for(future, self._reporter.check)
            parts.append(arrived(done.value))
            advance(len(parts[-1].token_ids))
        if layer.position is not None:
            advance(len(layer.position))
        return join(parts, token_ids).on(device)

    def make(
        self, job: WindowJob, reporter: Reporter, stage: Stage, on_shard: Callable[[], None]
    ) -> None:
        """As jobs.compute.make_here, a shard on each worker."""
        if job.source.backend is None:  # nothing but ids: sending them is as much as writing them
            make_here(job, reporter, stage, on_shard)
            return
        gpu = self._computing is not None and self._computing.device == "cuda"
        pool = self._workers(gpus=1 if gpu else 0)
        key = uuid.uuid4().hex
        setup = ray.put(
            worker.WindowSetup(
                out=self._out,
                holder=self._holder,
                scratch=self._scratch,
                computing=self._computing,
                context_length=job.source.context_length,
                layout=job.source.layout,
                plans=job.plans,
                layer=carried(job.source.layer),
                tables=carried(job.source.tables),
            )
        )
        wanted = needed(job.plans)
        left = iter(job.shards)
        waiting: set[Future[_Done]] = set()

        def submit(shard: Shard) -> Future[_Done]:
            integers = job.source.read(shard.first, shard.stop, wanted)
            held = {name: carried(tensor) for name, tensor in integers.items()}
            return pool.submit(worker.make_shard, key, setup, shard, held)

        def take(done: _Done) -> None:
            made: Made
            made, notes = done.value
            for note in notes:
                reporter.note(f"{done.node}: {note}")
            shard = made.shard
            if job.work.bucket is None:
                adopt(job.work.root, made.record.name, shard.name)
            record = replace(made.record, name=shard.name)
            job.work.journal.add_file(shard_entry(record, job.plans, shard), delivered=True)
            tokens = shard.windows * job.source.context_length
            stage.add(tokens=tokens, bytes=made.record.bytes)
            stage(shard.windows)
            reporter.add("compute", made.computing / pool.count)
            reporter.add("write", (made.seconds - made.computing) / pool.count)
            reporter.on_node(done.node, tokens)
            on_shard()

        while True:
            for shard in itertools.islice(left, AHEAD * pool.count - len(waiting)):
                reporter.check()
                waiting.add(submit(shard))
            if not waiting:
                return
            reporter.check()
            finished, waiting = wait_futures(waiting, LOOK_SECONDS, FIRST_COMPLETED)
            for future in finished:
                take(future.result())

    def _workers(self, gpus: int) -> _Pool:
        """The workers, each with so many GPUs."""
        if self._pool is None or self._pool_gpus != gpus:
            self.close()
            most = self._gpus if gpus else self.cpus
            count = min(self._config.workers or most, most)
            self._pool = _Pool(count, gpus, self._expected(gpus), self._reporter.note)
            self._pool_gpus = gpus
        return self._pool

    def _expected(self, gpus: int) -> worker.Expected:
        computing = self._computing
        if computing is not None and computing.device == "cuda" and not gpus:
            computing = None  # these tokenize
        return worker.Expected(
            versions=versions(self._tokenizer.library),
            computing=computing,
            place=self._backend.place if self._backend else {},
            out=self._out,
            holder=self._holder,
            scratch=self._scratch,
        )


@contextmanager
def cluster(
    config: JobConfig, tokenizer: Tokenizer, backend: Backend | None, reporter: Reporter
) -> Iterator[Engine]:
    """The engine of a cluster: that at --ray-address, or one that is started on this machine.

    Raises:
        ClusterError: if there is none, or it has other versions of Python or Ray.
    """
    with redirect_stdout(_RaySays(reporter.note)):
        _connect(config, reporter)
        try:
            found = _Cluster(config, tokenizer, backend, reporter)
            try:
                yield Engine(
                    workers=found.workers,
                    name_of_workers="workers of the cluster",
                    encoder=found.encoder,
                    build=found.build,
                    make=found.make,
                )
            finally:
                found.close()
        except exceptions.RayError as error:
            raise _cluster_error(error) from error
        finally:
            ray.shutdown()


class _RaySays(io.TextIOBase):
    """Takes what Ray prints in between, on a standard output that is for the result: as notes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def write(self, text: str) -> int:
        for line in text.splitlines():
            said = ESCAPES.sub("", line).replace("(raylet)", "").strip()
            if said:
                self._note(f"Ray: {said.partition('. ')[0][:MOST_SAID]}")
        return len(text)


def _connect(config: JobConfig, reporter: Reporter) -> None:
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    options: dict[str, Any] = {}
    environment: dict[str, Any] = {"py_modules": [str(place) for place in _code()]}
    if " " in sys.executable:  # which Ray gives to a shell as it is
        environment["py_executable"] = shlex.quote(sys.executable)
    if address == "local":
        cores = len(os.sched_getaffinity(0))
        options = {"num_cpus": config.workers or cores, "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except SystemExit as error:  # what Ray makes of SIGTERM meanwhile
        raise StoppedError(signal.SIGTERM) from error
    except Exception as error:  # Ray raises bare ones too
        raise ClusterError(
            f"no Ray cluster could be used at --ray-address {address}: {_first_line(error)}; start "
            "one with ray start --head, or leave the option out for one on this machine alone"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    where = "on this machine" if address == "local" else f"at {address}"
    reporter.note(f"Ray {ray.__version__} {where}: {nodes} nodes, {cpus} CPUs, {gpus} GPUs")


def _check_address(address: str) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT, for which Ray itself waits for long."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ClusterError(
            f"--ray-address {address!r} is not auto or HOST:PORT, such as ray start --head prints; "
            "the job itself runs on a node of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster is at --ray-address {address}: {error}; start one with ray start "
            "--head, or leave the option out for one on this machine alone"
        ) from error


def _code() -> list[Path]:
    """The folders of our packages and of the vocabularies, from a checkout or as installed."""
    root = Path(__file__).resolve().parent.parent
    return [*(root / name for name in PACKAGES), VOCABULARIES.parent]


def _first_line(error: BaseException) -> str:
    """The first line of what an error of Ray says, which may go on for pages."""
    return _lines(error)[0]


def _last_line(error: BaseException) -> str:
    """The last line, which names the cause where the first ones are a traceback."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip().rstrip(".:") for line in ESCAPES.sub("", str(error)).splitlines()]
    return [line[:MOST_SAID] for line in lines if line] or [type(error).__name__]


def _cluster_error(error: exceptions.RayError) -> ClusterError:
    """What Ray itself could not do, as an error of ours."""
    said = f"{type(error).__name__}: {_first_line(error)}"
    return ClusterError(f"Ray could not go on: {said}; the same command resumes")
