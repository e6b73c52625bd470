"""Nothing is lost: jobs killed, refused and cut off at every operation, then given again."""

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters.verify import verify
from tests.helpers import ROOT, write_corpus
from tests.lab import PART_TOKENS, Answer, Lab
from tests.powercut import leave, replay

pytestmark = pytest.mark.slow

JOB = (
    "--tokenizer", "gpt2", "--device", "cpu", "--context-length", 64, "--d-model", 8, "--heads", 2,
    "--vocab-size", "corpus", "--shard-size", "20kB", "--batch-size", 2,
)  # fmt: skip
RUN = (*JOB, "--method", "tables")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: a thousand jobs sync a hundred thousand times."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="qkvmill-", dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def corpus(scratch: Path) -> Path:
    """Three documents that come to two parts of the token stream."""
    return write_corpus(
        scratch / "corpus",
        a="One fish, two fish, red fish, blue fish.\n" * 16,
        b="def f(x):\n    return x + 1\n" * 11,
        c="Three more words. " * 44,
    )


def files(out: Path) -> dict[str, bytes]:
    """Everything at out but what may differ between two runs."""
    paths = (path for path in out.rglob("*") if not path.is_dir())
    names = {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in names.items() if name != "run.json"}


def assert_not_wrong(out: Path) -> None:
    """An export that looks finished is whole."""
    if (out / "manifest.json").exists():
        assert verify(out, lambda _: None).problems == ()


def assert_refused(answer: Answer) -> None:
    """One line, exit status 1."""
    assert answer.status == 1, answer
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert answer.stderr.startswith("Error: ")


class Scenario:
    """A command, what stands there before, and what it comes to undisturbed."""

    def __init__(self, lab: Lab, folder: Path, before: Path | None, *command: object) -> None:
        self.lab, self.folder, self.before, self.command = lab, folder, before, command
        self.out = folder / "out"
        self.prepare()
        log = folder / "log"
        answer = self.run(log=str(log))
        assert (answer.status, answer.stderr) == (0, "")
        self.log: list[tuple[Any, ...]] = pickle.loads(log.read_bytes())
        assert len(self.log) == answer.operations
        self.expected = files(self.out)

    def prepare(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, self.out)

    def run(self, **disturbance: Any) -> Answer:
        return self.lab.run(*self.command, "--out", self.out, "--quiet", **disturbance)

    def assert_resumes(self, context: object) -> None:
        answer = self.run()
        assert answer.status == 0, (context, answer)
        assert files(self.out) == self.expected, context
        assert not (self.out / ".work").exists(), context


@pytest.fixture(scope="module")
def scenario(lab: Lab, corpus: Path, scratch: Path) -> Any:
    """Scenarios by name, each made once."""
    made: dict[str, Scenario] = {}

    def other(name: str, *options: object) -> Path:
        """A finished export, to start from."""
        out = scratch / name
        answer = lab.run("run", corpus, "--out", out, *RUN, *options, "--quiet")
        assert answer.status == 0, answer
        return out

    def make(name: str) -> Scenario:
        folder = scratch / f"job-{name}"
        folder.mkdir()
        if name == "overwrite":
            before = other("before", "--seed", 1, "--export", "qkv")
            return Scenario(lab, folder, before, "run", corpus, *RUN, "--overwrite")
        if name == "expand":
            compact = other("compact", "--artifact", "compact")
            return Scenario(lab, folder, None, "expand", compact)
        options = {
            "tables": RUN,
            "direct": (*JOB, "--method", "direct", "--export", "features", "--export", "qkv"),
            "compact": (*RUN, "--artifact", "compact", "--sampling", "random"),
        }[name]
        return Scenario(lab, folder, None, "run", corpus, *options)

    def get(name: str) -> Scenario:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


def test_the_jobs_write_several_parts_and_shards(scenario: Callable[[str], Scenario]) -> None:
    tables = scenario("tables")
    names = [name for name in tables.expected if name.endswith(".safetensors")]
    assert Counter(name.partition("/")[0] for name in names) == {
        "tokens": 2, "shards": 4, "weights.safetensors": 1,
    }  # fmt: skip
    tokens = json.loads((tables.out / "manifest.json").read_text())["tokens"]["count"]
    assert PART_TOKENS < tokens < 2 * PART_TOKENS


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_change_to_a_disk_goes_past_the_operations(
    scenario: Callable[[str], Scenario], tmp_path: Path
) -> None:
    """System calls of a real job, against the operations that the lab would disturb."""
    job = scenario("tables")
    job.prepare()
    calls = (
        "openat,creat,write,pwrite64,writev,pwritev,rename,renameat,renameat2,unlink,unlinkat,"
        "mkdir,mkdirat,rmdir,truncate,ftruncate,fallocate,fsync,fdatasync,link,linkat,symlink,"
        "symlinkat,chmod,fchmod,fchmodat,copy_file_range,sendfile,sync_file_range"
    )
    start = (
        "import sys, torch; from jobs import stream; from jobs.commands import main; "
        "torch.set_num_threads(1); "
        f"stream.PART_TOKENS = {PART_TOKENS}; main.main(sys.argv[1:])"
    )
    command = [str(part) for part in (*job.command, "--out", job.out, "--quiet")]
    subprocess.run(
        ["strace", "-f", "-y", "-s", "0", "-e", f"trace={calls}", "-o", tmp_path / "calls",
         sys.executable, "-c", start, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, check=True,
    )  # fmt: skip
    kinds = {
        "openat": "create", "write": "write", "rename": "rename", "unlink": "remove",
        "mkdir": "make_folder", "rmdir": "remove_folder", "fsync": "sync",
    }  # fmt: skip
    seen = []
    for line in (tmp_path / "calls").read_text().splitlines():
        call, _, rest = line.split(maxsplit=1)[1].partition("(")
        path = re.search(f'["<]({re.escape(str(job.out))}[^">]*)[">]', rest)
        if path is None or " = -1 " in line or (call == "openat" and "O_CREAT" not in rest):
            continue
        if not path[1].endswith(".work/lock"):
            seen.append((kinds.get(call, call), path[1]))
    told = [
        (name.replace("open_end", "create").replace("sync_folder", "sync"), path)
        for name, path, *_ in job.log
        if path.startswith(str(job.out)) and not path.endswith(".work/lock")
    ]
    assert seen == told
    assert files(job.out) == job.expected


@pytest.mark.parametrize("name", ["tables", "compact", "expand", "overwrite"])
def test_killed_at_every_operation_a_job_resumes_to_the_same_bytes(
    scenario: Callable[[str], Scenario], name: str
) -> None:
    job = scenario(name)
    for at, (operation, *_) in enumerate(job.log):
        for how in ("kill", "tear") if operation == "write" else ("kill",):
            job.prepare()
            assert job.run(how=how, at=at).status == -9
            assert_not_wrong(job.out)
            job.assert_resumes((how, at, job.log[at][:2]))


@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", ["tables", "expand"])
def test_refused_at_every_operation_a_job_says_so_and_resumes(
    scenario: Callable[[str], Scenario], name: str, how: str
) -> None:
    job = scenario(name)
    for at, (operation, *_) in enumerate(job.log):
        job.prepare()
        assert_refused(job.run(how=how, at=at))
        assert_not_wrong(job.out)
        job.assert_resumes((how, at, operation))


@pytest.mark.parametrize(("how", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("name", ["tables", "direct", "expand"])
def test_asked_to_stop_at_any_operation_a_job_says_so_and_resumes(
    scenario: Callable[[str], Scenario], name: str, how: str, status: int
) -> None:
    job = scenario(name)
    stopped = 0
    for at in range(0, len(job.log), 5):
        job.prepare()
        answer = job.run(how=how, at=at, threads=2)
        assert answer.status in (0, status), answer
        if answer.status:
            stopped += 1
            assert answer.stderr == f"Error: stopped by {how}; the same command goes on from here\n"
            assert not (job.out / "manifest.json").exists()
        job.assert_resumes((how, at))
    assert stopped > len(job.log) / 5 / 2


def test_a_second_signal_ends_a_job_at_once(scenario: Callable[[str], Scenario]) -> None:
    job = scenario("tables")
    # Where the next safe place is a whole file away.
    at = next(n for n, (_, path, *_) in enumerate(job.log) if "weights" in path)
    job.prepare()
    once = job.run(how="SIGINT", at=at)
    job.prepare()
    twice = job.run(how="SIGINT", at=at, times=2)
    assert (once.status, twice.status) == (130, 130)
    assert twice.stderr == ""
    assert twice.operations <= at + 3 < once.operations
    job.assert_resumes("twice")


@pytest.mark.parametrize("name", ["tables", "direct"])
def test_two_workers_killed_over_and_over_come_to_the_same_bytes(
    scenario: Callable[[str], Scenario], name: str
) -> None:
    job = scenario(name)
    chance = random.Random(name)
    kills = 0
    while kills < 50:
        job.prepare()
        while (answer := job.run(threads=2, seconds=chance.uniform(0.03, 0.16))).status != 0:
            assert answer.status == -9, answer
            assert_not_wrong(job.out)
            kills += 1
        job.assert_resumes(kills)


@pytest.mark.parametrize("more", [False, True], ids=["synced-only", "any-part-of-the-rest"])
@pytest.mark.parametrize("name", ["tables"])
def test_a_power_cut_after_any_operation_loses_nothing_that_was_said_to_be_done(
    scenario: Callable[[str], Scenario], name: str, more: bool
) -> None:
    job = scenario(name)
    for at in range(len(job.log) + 1):
        base = job.folder / "cut"
        shutil.rmtree(base, ignore_errors=True)
        leave(replay(job.log[:at], job.folder), base, random.Random(at) if more else None)
        shutil.rmtree(job.out, ignore_errors=True)
        if (base / "out").exists():
            (base / "out").rename(job.out)
        assert_not_wrong(job.out)
        done = at == len(job.log)
        assert (job.out / "manifest.json").exists() or not done
        job.assert_resumes((at, job.log[at - 1][:2]))
