"""A server that runs the command line in forks of itself and disturbs what they do to the disk.

    python -m tests.lab

Each line of standard input is a request in JSON, each line of standard output its answer. A fork
takes a tenth of a second where a fresh interpreter takes seconds to import torch, so every single
operation of a job can be the one at which it is killed or refused.
"""

import contextlib
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters import disk

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = (
    "make_folder", "create", "open_end", "write", "truncate", "sync", "sync_folder", "rename",
    "remove", "remove_folder",
)  # fmt: skip
NEEDS_SPACE = ("make_folder", "create", "open_end", "write", "rename")
PART_TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command and what happens at its operation number `at`, counted from 0.

    kill    it is killed before the operation
    tear    it is killed after the operation, or after half of it where it writes
    ENOSPC  the operation is refused, and every later one that needs space
    EIO     the operation is refused
    SIGINT, SIGTERM   it is sent the signal, and does the operation
    """

    arguments: list[str]
    how: str = ""
    at: int = -1
    seconds: float | None = None  # until it is killed, wherever it is
    times: int = 1  # a signal is sent again at the next operations
    threads: int = 1
    log: str | None = None  # a file that takes the operations


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended, and how many operations it began."""

    status: int  # negative: the signal that killed it
    stdout: str
    stderr: str
    operations: int


class Lab:
    """The server, as its client sees it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.lab"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **disturbance: Any) -> Answer:
        """Run `qkvmill` with arguments, as a Request says."""
        request = Request(arguments=[str(argument) for argument in arguments], **disturbance)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asdict(request)) + "\n")
        self._server.stdin.flush()
        return Answer(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


class Disturbed:
    """The operations of exporters.disk, counted, with one of them disturbed."""

    def __init__(self, request: Request, count: Path) -> None:
        self.request = request
        self.log: list[tuple[Any, ...]] = []
        self._count = count.open("wb", buffering=0)
        self._number = -1
        self._lock = threading.Lock()
        for name in OPERATIONS:
            setattr(disk, name, self._wrapped(name, getattr(disk, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            # One after the other, so that the log is the order in which they took place.
            with self._lock:
                self._number += 1
                self._count.write(b".")
                self._disturb(name, real, arguments)
                result = real(*arguments)
                if self.request.log:
                    self.log.append(_recorded(name, arguments, result))
                return result

        return operation

    def _disturb(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        how, at = self.request.how, self.request.at
        if how == "ENOSPC" and self._number > at >= 0 and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how.startswith("SIG") and at <= self._number < at + self.request.times:
            os.kill(os.getpid(), getattr(signal, how))
            return
        if self._number != at:
            return
        if how in ("ENOSPC", "EIO"):
            number = getattr(errno, how)
            raise OSError(number, os.strerror(number))
        if how == "tear":
            if name == "write":
                file, data = arguments
                real(file, data[: len(data) // 2])
            else:
                real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)


def _recorded(name: str, arguments: tuple[Any, ...], result: Any) -> tuple[Any, ...]:
    """An operation as plain values: its name, its paths, and what it wrote."""
    if name == "write":
        file, data = arguments
        return name, os.fspath(file.name), bytes(data[:result])
    if name == "truncate":
        return name, os.fspath(arguments[0].name), arguments[1]
    paths = (getattr(argument, "name", None) if hasattr(argument, "fileno") else argument
             for argument in arguments)  # fmt: skip
    return name, *(os.fspath(path) for path in paths if path is not None)


def serve() -> None:
    """Answer requests until there are no more."""
    import torch

    from jobs import run as job
    from jobs import stream
    from jobs.choose_tokenizer import tokenizer_of
    from jobs.tokenizer import load_encoding

    # Made once for all forks; the names of others are still refused.
    tokenizer = load_encoding("gpt2")
    vars(stream)["PART_TOKENS"] = PART_TOKENS
    vars(job)["tokenizer_of"] = lambda config: (
        tokenizer if config.tokenizer == "gpt2" else tokenizer_of(config)
    )
    scratch = Path(os.environ.get("TMPDIR", "/tmp")) / f"qkvmill-lab-{os.getpid()}"
    scratch.mkdir()
    try:
        for line in sys.stdin:
            request = Request(**json.loads(line))
            child = os.fork()
            if child == 0:
                torch.set_num_threads(request.threads)
                _child(request, scratch)
            print(json.dumps(asdict(_answer(request, child, scratch))), flush=True)
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()


def _child(request: Request, scratch: Path) -> None:
    """Run the command and end this process."""
    from jobs.commands.main import main

    status = 70
    try:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(scratch / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
        disturbed = Disturbed(request, scratch / "count")
        status = main(request.arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        if request.log:
            Path(request.log).write_bytes(pickle.dumps(disturbed.log))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _answer(request: Request, child: int, scratch: Path) -> Answer:
    with _killed_after(child, request.seconds):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Answer(
        status=status,
        stdout=(scratch / "stdout").read_text(),
        stderr=(scratch / "stderr").read_text(),
        operations=(scratch / "count").stat().st_size,
    )


@contextlib.contextmanager
def _killed_after(child: int, seconds: float | None) -> Iterator[None]:
    timer = threading.Timer(seconds or 0, os.kill, (child, signal.SIGKILL))
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if seconds is not None:
            timer.join()  # no thread may run when the next fork is made


if __name__ == "__main__":
    serve()
