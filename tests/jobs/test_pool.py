import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings

from jobs.encode import Encoded
from jobs.errors import TokenizerError, WorkerError
from jobs.inputs.segments import Lines
from jobs.pool import Encode, encoder
from jobs.stopping import StoppedError
from tests.formats import DOCUMENTS, encode_settings, encoded, joined, jsonl, tokenizer
from tests.helpers import ROOT, succeed

SECONDS = 10.0
"""How long what has to happen soon may take where the machine is busy."""


def going_on() -> None:
    """The check of a job that nobody asked to stop."""


@contextmanager
def processes(count: int, check: Callable[[], None] = going_on) -> Iterator[Encode]:
    with encoder(count, "gpt2", tokenizer("gpt2"), encode_settings(), check) as encode:
        yield encode


@pytest.fixture(scope="module")
def two() -> Iterator[Encode]:
    with processes(2) as encode:
        yield encode


def segment(*documents: str) -> Lines:
    return Lines(jsonl(documents), 1)


def ids(parts: Sequence[Encoded]) -> list[list[int]]:
    return [part.ids.tolist() for part in parts]


def soon(true: Callable[[], bool]) -> bool:
    """Whether something comes true within SECONDS."""
    end = time.monotonic() + SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@settings(max_examples=40, deadline=None)
@given(documents=DOCUMENTS)
def test_processes_give_what_one_gives(two: Encode, documents: list[str]) -> None:
    segments = [segment(*documents), segment("a", *documents)]
    found = two(segments)()
    assert ids(encoded(segments)) == ids(found)
    assert joined("gpt2", ["", *documents]) == found[0].ids.tolist()


def test_results_are_those_of_their_tasks_though_some_take_longer(two: Encode) -> None:
    texts = ["word and " * (40_000 if number % 3 == 0 else 1) + str(number) for number in range(9)]
    results = [two([segment(text)]) for text in texts]
    for text, result in zip(texts, results, strict=True):
        (part,) = result()
        assert joined("gpt2", ["", text]) == part.ids.tolist()


def test_one_worker_is_no_process() -> None:
    before = active_children()
    with processes(1) as encode:
        assert [joined("gpt2", ["", "a"])] == ids(encode([segment("a")])())
        assert before == active_children()


@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "waiting"])
def test_a_process_that_is_killed_is_named_and_the_others_end(at_work: bool) -> None:
    others = set(active_children())
    began = time.monotonic()
    with processes(2) as encode:
        for _ in range(2):
            encode([segment("a word " * 100_000)])
        ours = set(active_children()) - others
        victim = min(process.pid or 0 for process in ours)
        if not at_work:
            encode([segment("a")])()
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerError) as died:
            go_on(encode, began + SECONDS)
    assert time.monotonic() - began < SECONDS
    assert f"a tokenising process died: process {victim} (signal 9); " in str(died.value)
    assert soon(lambda: not any(process.is_alive() for process in ours))


def go_on(encode: Encode, end: float) -> None:
    """Encode until a time."""
    while time.monotonic() < end:
        encode([segment("a word " * 100)])()


def test_processes_that_a_signal_to_all_ended_stop_the_job() -> None:
    came = False

    def check() -> None:
        if came:
            raise StoppedError(signal.SIGTERM)

    others = set(active_children())
    with pytest.raises(StoppedError), processes(2, check) as encode:
        encode([segment("a")])()
        for process in set(active_children()) - others:
            process.terminate()
        came = True
        while True:
            encode([segment("a")])


@pytest.mark.parametrize(
    "failure",
    [pytest.param(EOFError(), id="end"), pytest.param(BrokenPipeError(), id="broken-pipe")],
)
def test_a_process_that_dies_as_it_is_started_is_told(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(process: ForkServerProcess) -> None:
        raise failure

    monkeypatch.setattr(ForkServerProcess, "start", die)
    with (
        pytest.raises(WorkerError, match="a tokenising process died: as it was started; "),
        processes(2) as encode,
    ):
        encode([segment("a")])


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.1])
def test_a_process_that_is_killed_while_others_start_ends_the_job(seconds: float) -> None:
    others = set(active_children())
    began = time.monotonic()

    def kill() -> None:
        assert soon(lambda: bool(set(active_children()) - others))
        time.sleep(seconds)
        first = min(set(active_children()) - others, key=lambda process: process.pid or 0)
        first.kill()

    killer = Thread(target=kill)
    with pytest.raises(WorkerError, match="a tokenising process died: "), processes(3) as encode:
        killer.start()
        while time.monotonic() < began + SECONDS:
            encode([segment("a word " * 20_000)])()
    killer.join()
    assert time.monotonic() - began < SECONDS


def test_a_process_that_is_killed_while_it_writes_a_result_is_named_too() -> None:
    # The job does not read while it is stopped, so that the result fills the pipe and waits.
    code = """
import os, subprocess
from multiprocessing import active_children
from multiprocessing.context import ForkServerProcess
from jobs.errors import WorkerError
from tests.jobs.test_pool import processes, segment
try:
    with processes(2) as encode:
        encode([segment("a")])()
        results = [encode([segment("a word " * 30_000)]) for _ in range(2)]
        victims = " ".join(str(process.pid) for process in active_children())
        subprocess.run(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 1.5; kill -KILL {victims}; "
                        f"sleep 0.2; kill -CONT {os.getpid()}"])
        for result in results:
            result()
except WorkerError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert "a tokenising process died: process " in done.stdout, done.stderr
    assert "(signal 9); " in done.stdout


def test_a_job_that_is_to_stop_does_not_wait_for_what_is_at_work() -> None:
    others = set(active_children())
    came = False

    def check() -> None:
        if came:
            raise StoppedError(signal.SIGINT)

    with processes(2, check) as encode:
        results = [encode([segment("a word " * 200_000)]) for _ in range(20)]
        came = True
        with pytest.raises(StoppedError):
            results[0]()
    assert soon(lambda: set(active_children()) <= others)


def test_a_tokenizer_that_changed_meanwhile_is_an_error() -> None:
    known = tokenizer("p50k_base")
    with (
        pytest.raises(TokenizerError, match="the tokenizer gpt2 changed while it was read"),
        encoder(2, "gpt2", known, encode_settings(), going_on) as encode,
    ):
        encode([segment("a")])()


def test_a_tokenizer_that_is_gone_is_an_error(tmp_path: Path) -> None:
    gone = tmp_path / "tokenizer.json"
    with (
        pytest.raises(TokenizerError, match=r"tokenizer\.json"),
        encoder(2, gone, tokenizer("gpt2"), encode_settings(), going_on) as encode,
    ):
        encode([segment("a")])()


def of_session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    text = "".join(f"Line {number} of a text\nthat goes on.\n" for number in range(100_000))
    (tmp_path / "a.txt").write_text(text)
    return tmp_path / "a.txt"


def job(corpus: Path, *options: object) -> list[str]:
    words = ("run", corpus, "--tokenizer", "gpt2", "--context-length", 16, "--export", "tokens",
             *options)  # fmt: skip
    return [str(word) for word in words]


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A job in a session of its own, once its processes are there."""
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", *command], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            # The job, the tracker of its resources, the server that makes processes, and two.
            assert soon(lambda: len(of_session(process.pid)) == 5 or process.poll() is not None)
            yield process
        finally:
            for pid in of_session(process.pid):
                os.kill(pid, signal.SIGKILL)


def test_processes_end_with_a_job_that_is_killed(tmp_path: Path, corpus: Path) -> None:
    with started(job(corpus, "--out", tmp_path / "out", "--workers", 2)) as process:
        assert len(of_session(process.pid)) == 5
        process.kill()
        assert soon(lambda: not of_session(process.pid))


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
def test_a_signal_to_all_processes_is_one_to_the_job(
    signum: int, status: int, tmp_path: Path, corpus: Path
) -> None:
    command = job(corpus, "--out", tmp_path / "out")
    with started([*command, "--workers", "2"]) as process:
        os.killpg(process.pid, signum)
        _, said = process.communicate(timeout=SECONDS)
        assert soon(lambda: not of_session(process.pid))
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert "the same command goes on from here" in said
    succeed(*command, "--workers", 2)
