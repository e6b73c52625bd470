"""Processes that encode: started once, fed in order, gone with the job whatever becomes of it.

Each has a pipe and a thread of the job that feeds it. A pipe ends where its process does, even in
the middle of a result, so a process that dies is never waited for.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from jobs.encode import Encoded, EncodeSettings, encode_segment
from jobs.errors import TokenizerError, WorkerError
from jobs.inputs.segments import Segment
from jobs.tokenizer import ENCODINGS, Tokenizer, load_encoding
from kernels.errors import QkvmillError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2  # between looks at whether the job is to stop
END_SECONDS = 2.0  # in which a process ends whose pipe did

Encode = Callable[[Sequence[Segment]], Callable[[], list[Encoded]]]
Result = TypeVar("Result")


class _Worker(NamedTuple):
    """A process that encodes, and this end of its pipe."""

    process: BaseProcess
    pipe: "Connection[Sequence[Segment], list[Encoded] | QkvmillError]"


@contextmanager
def encoder(
    workers: int,
    place: str | Path,
    tokenizer: Tokenizer,
    settings: EncodeSettings,
    check: Callable[[], None],
) -> Iterator[Encode]:
    """What takes segments and gives a function that waits for their ids.

    With one worker that function does the work itself; else all processes start with the first.

    Args:
        place: where a process finds the tokenizer, as load_tokenizer takes it.
        check: called while waiting; raises where the job is to stop.

    The function raises WorkerError if a process dies, naming it.
    """
    if workers == 1:
        yield lambda segments: lambda: [encode_segment(s, tokenizer, settings) for s in segments]
        return
    started: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def encode(segments: Sequence[Segment]) -> list[Encoded]:
        """Let a process encode; in a thread, of which there is one for each process."""
        worker = idle.get()
        try:
            worker.pipe.send(segments)
            encoded = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise _death(worker.process) from error
        finally:
            idle.put(worker)
        if isinstance(encoded, QkvmillError):
            raise encoded
        return encoded

    def submit(segments: Sequence[Segment]) -> Callable[[], list[Encoded]]:
        check()
        if not started:
            _start_all(workers, (place, tokenizer.vocabulary_sha256, settings), started)
            for worker in started:
                idle.put(worker)
        future = threads.submit(encode, segments)
        return lambda: wait_for(future, check)

    try:
        with ThreadPoolExecutor(workers, "feed") as threads:
            try:
                yield submit
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for worker in started:  # whose threads then see their pipes end
                    worker.process.terminate()
                raise
    finally:
        _end_all(started)


def wait_for(future: "Future[Result]", check: Callable[[], None]) -> "Result":
    """The result of a future; `check` is called meanwhile."""
    while True:
        check()
        try:
            return future.result(LOOK_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()
        except WorkerError:
            check()  # a signal to the whole group ends processes too, and asks the job to stop
            raise


def _start_all(
    count: int, arguments: tuple[str | Path, str, EncodeSettings], started: list[_Worker]
) -> None:
    """Start processes, never as copies of this one, whose threads may hold locks.

    Raises:
        WorkerError: if one dies, or what starts them.
        OSError: if the system gives no more of what they need.
    """
    context: ForkServerContext = get_context("forkserver")
    context.set_forkserver_preload(["jobs.pool"])
    # Interrupts are for the job itself: its processes are started with them blocked. What starts
    # the tracker lets them through again, so that it has to be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, *arguments), daemon=True)
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                raise WorkerError(_died("as it was started")) from error
            finally:
                theirs.close()
            started.append(_Worker(process, ours))
            log.info("started process %s, which tokenizes", process.pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_all(started: Sequence[_Worker]) -> None:
    for worker in started:
        worker.pipe.close()
    for worker in started:
        worker.process.join(END_SECONDS)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        log.info("process %s ended with %s", worker.process.pid, worker.process.exitcode)


def _serve(
    pipe: "Connection[list[Encoded] | QkvmillError, Sequence[Segment]]",
    place: str | Path,
    sha256: str,
    settings: EncodeSettings,
) -> None:
    """Encode what comes through a pipe until it ends: all that a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_the_job()
    obstacle: QkvmillError | None = None
    try:
        tokenizer = _tokenizer(place, sha256)
    except QkvmillError as error:
        obstacle = error
    with suppress(EOFError, OSError):
        while True:
            segments = pipe.recv()
            pipe.send(obstacle or [encode_segment(s, tokenizer, settings) for s in segments])


def _tokenizer(place: str | Path, sha256: str) -> Tokenizer:
    """The tokenizer of a job, in another process.

    Raises:
        QkvmillError: if it cannot be read, or is not the job's.
    """
    if place in ENCODINGS:
        tokenizer = load_encoding(str(place))
    else:
        from jobs.hf_tokenizer import load_file

        tokenizer = load_file(Path(place))
    if tokenizer.vocabulary_sha256 != sha256:
        raise TokenizerError(f"the tokenizer {place} changed while it was read; run again")
    return tokenizer


def _end_with_the_job() -> None:
    """End this process when the one that started it is gone, even by SIGKILL, in mid-task too."""
    job = parent_process()
    if job is not None:
        threading.Thread(
            target=lambda: (wait([job.sentinel]), os._exit(1)), daemon=True, name="job"
        ).start()


def _death(process: BaseProcess) -> WorkerError:
    """What is said of a process whose pipe ended."""
    process.join(END_SECONDS)
    code = process.exitcode
    if code is None:
        return WorkerError(_died(f"process {process.pid} (it closed its pipe)"))
    end = f"signal {-code}" if code < 0 else f"status {code}"
    return WorkerError(_died(f"process {process.pid} ({end})"))


def _died(which: str) -> str:
    return (
        f"a tokenising process died: {which}; if memory ran out give fewer --workers; "
        "the same command resumes"
    )
