"""The stages of a job on a Ray cluster: workers do them, the job commits.

Plain actors and not ray.data: segments are taken in the order of the corpus, and what is finished
is journalled shard by shard, neither of which a dataset promises.
"""

import itertools
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_futures
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import ray
import torch
from ray import exceptions
from torch import Tensor

from exporters.files import adopt
from exporters.source import needed
from jobs import worker
from jobs.actors import Done, Pool
from jobs.carried import arrived, carried
from jobs.compute import WROTE, WindowJob, make_here
from jobs.config import JobConfig
from jobs.connect import RaySays, cluster_error, connect
from jobs.encode import Encoded, EncodeSettings
from jobs.engine import Engine
from jobs.errors import ClusterError
from jobs.inputs.segments import Segment
from jobs.pace import Stage
from jobs.pool import Encode, wait_for
from jobs.progress import Reporter
from jobs.shards import Made, Shard, shard_entry
from jobs.tokenizer import Tokenizer
from jobs.versions import versions
from kernels.dispatch import Backend
from kernels.layer import DTYPES, FirstLayer
from kernels.tables import BUILD_ROWS, Tables, join

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2  # between looks at whether the job is to stop
AHEAD = 2  # shards for each worker that are waiting or at work


class _Cluster:
    """The stages of a job, on workers that are started when they are first needed."""

    def __init__(
        self, config: JobConfig, tokenizer: Tokenizer, backend: Backend | None, reporter: Reporter
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._backend = backend
        self._reporter = reporter
        self._pool: Pool | None = None
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

        try:
            yield encode
        finally:
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
        waiting: set[Future[Done]] = set()
        said: set[str] = set()

        def submit(shard: Shard) -> Future[Done]:
            integers = job.source.read(shard.first, shard.stop, wanted)
            held = {name: carried(tensor) for name, tensor in integers.items()}
            return pool.submit(worker.make_shard, key, setup, shard, held)

        def take(done: Done) -> None:
            made: Made
            made, notes = done.value
            for note in (f"{done.node}: {note}" for note in notes):
                if note not in said:  # the shards of a node may all have the same to say
                    reporter.note(note)
                    said.add(note)
            shard = made.shard
            if job.work.bucket is None:
                adopt(job.work.root, made.record.name, shard.name)
            record = replace(made.record, name=shard.name)
            job.work.journal.add_file(shard_entry(record, job.plans, shard), delivered=True)
            log.info(f"{WROTE} on %s", shard.name, record.bytes, made.seconds, done.node)
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

    def _workers(self, gpus: int) -> Pool:
        """The workers, each with so many GPUs."""
        if self._pool is None or self._pool_gpus != gpus:
            self.close()
            most = self._gpus if gpus else self.cpus
            count = min(self._config.workers or most, most)
            self._pool = Pool(count, gpus, self._expected(gpus), self._reporter.note)
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
    with redirect_stdout(RaySays(reporter.note)):
        connect(config, reporter)
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
            raise cluster_error(error) from error
        finally:
            ray.shutdown()
