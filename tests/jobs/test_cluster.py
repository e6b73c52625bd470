"""Jobs on a real Ray cluster of three raylets on this machine: the bytes of the local engine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, needs_c, qkvmill, succeed, write_corpus

CHAOS = "The quick onyx goblin jumps over the lazy dwarf, and {} vexed wizards run. "
JOB = ("--context-length", 32, "--d-model", 32, "--heads", 4, "--device", "cpu",
       "--batch-size", 1)  # fmt: skip
NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Three raylets of two CPUs each; tests may add others, and remove those."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = {name: "".join(CHAOS.format(n) for n in range(400)) for name in "abc"}
    return write_corpus(tmp_path_factory.mktemp("texts") / "corpus", **texts)


def on_ray(cluster: Any, *arguments: object) -> subprocess.Popen[str]:
    """A job of this checkout as a process, on a cluster."""
    command = [sys.executable, "-m", "jobs", *arguments, "--engine", "ray",
               "--ray-address", cluster.address]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for a job; returns what it said on stderr. Its last table has to name a node."""
    out, said = process.communicate(timeout=180)
    assert process.returncode == status, said + out
    assert "Traceback" not in said
    assert status or re.search(r"^ +[\d.]+/[0-9a-f]{6} .* [\d,]+ *$", out, re.M), out
    return said


def sums(out: Path) -> str:
    return (out / "SHA256SUMS").read_text()


def workers() -> list[int]:
    """The processes of Ray's actors."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(pid) for pid, name in lines if name.startswith("ray::_Actor")]


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something that a job does."""
    give_up = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        ("--method", "tables", "--export", "tokens", "--export", "features", "--export", "qkv"),
        ("--method", "direct", "--dtype", "bfloat16"),
        ("--artifact", "compact", "--sampling", "random", "--batches", 40),
    ],
    ids=["tables", "direct", "compact"],
)
def test_the_bytes_are_those_of_one_machine(
    tmp_path: Path, ray_cluster: Any, corpus: Path, options: tuple[object, ...], count: int
) -> None:
    job = ("run", corpus, *JOB, *options, "--shard-size", "300kB")
    succeed(*job, "--out", tmp_path / "here")
    said = finish(on_ray(ray_cluster, *job, "--out", tmp_path / "there", "--workers", count))
    assert "3 nodes, 6 CPUs" in said
    assert sums(tmp_path / "here") == sums(tmp_path / "there")
    succeed("verify", tmp_path / "there")
    assert not (tmp_path / "there" / ".work").exists()


@needs_c
def test_a_node_without_a_c_compiler_gives_the_same_bytes_and_says_so_once(
    tmp_path: Path, ray_cluster: Any, corpus: Path
) -> None:
    job = ("run", corpus, *JOB, "--method", "tables", "--shard-size", "20kB")
    succeed(*job, "--out", tmp_path / "here")
    node = ray_cluster.add_node(**NODE, env_vars={"CC": "no-such-compiler"})
    try:
        process = on_ray(ray_cluster, *job, "--out", tmp_path / "there", "--workers", 8)
        said = finish(process)
    finally:
        ray_cluster.remove_node(node)
    (line,) = [line for line in said.splitlines() if "slower than by C" in line]
    assert line.endswith("CC names 'no-such-compiler', which is no program")
    assert sums(tmp_path / "here") == sums(tmp_path / "there")


def test_nothing_is_lost_or_done_twice_where_workers_and_a_node_die(
    tmp_path: Path, ray_cluster: Any, corpus: Path
) -> None:
    job = ("run", corpus, *JOB, "--shard-size", "20kB", "--max-record-bytes", "1MB")
    succeed(*job, "--out", tmp_path / "here")
    out = tmp_path / "there"
    doomed = ray_cluster.add_node(**NODE)
    process = on_ray(ray_cluster, *job, "--out", out, "--workers", 5)
    shards = len(list((tmp_path / "here" / "shards").iterdir()))
    killed, removed, since = 0, False, time.monotonic()
    while process.poll() is None and time.monotonic() - since < 150:
        time.sleep(3)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        if not removed and len(list(out.glob("shards/*.safetensors"))) > shards // 3:
            ray_cluster.remove_node(doomed, allow_graceful=False)
            removed = True
    said = finish(process)
    assert removed
    assert killed > 1
    assert "what it was at is done again" in said
    assert sums(tmp_path / "here") == sums(out)
    names = [entry["name"] for entry in json.loads((out / "manifest.json").read_text())["files"]]
    assert len(names) == len(set(names))
    assert sum(name.startswith("shards/") for name in names) == shards
    succeed("verify", out)


def test_a_job_that_was_killed_goes_on(tmp_path: Path, ray_cluster: Any, corpus: Path) -> None:
    job = ("run", corpus, *JOB, "--shard-size", "40kB")
    succeed(*job, "--out", tmp_path / "here")
    out = tmp_path / "there"
    process = on_ray(ray_cluster, *job, "--out", out, "--workers", 2)
    wait_until(lambda: len(list(out.glob("shards/*.safetensors"))) > 5, process)
    process.kill()
    process.communicate()
    assert not (out / "manifest.json").exists()
    said = finish(on_ray(ray_cluster, *job, "--out", out, "--workers", 3))
    assert "holds an unfinished export: going on, " in said
    assert sums(tmp_path / "here") == sums(out)
    succeed("verify", out)


def test_a_signal_stops_a_job_which_one_machine_can_finish(
    tmp_path: Path, ray_cluster: Any, corpus: Path
) -> None:
    job = ("run", corpus, *JOB, "--shard-size", "40kB")
    out = tmp_path / "there"
    process = on_ray(ray_cluster, *job, "--out", out, "--workers", 2)
    wait_until(lambda: len(list(out.glob("shards/*.safetensors"))) > 5, process)
    process.terminate()
    said = finish(process, 143)
    assert said.splitlines()[-1] == "Error: stopped by SIGTERM; the same command goes on from here"
    assert "going on" in succeed(*job, "--out", out).stderr
    succeed(*job, "--out", tmp_path / "here")
    assert sums(tmp_path / "here") == sums(out)


def test_a_bad_record_fails_once(tmp_path: Path, ray_cluster: Any) -> None:
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text('{"text": "good"}\n' * 500 + "bad\n")
    process = on_ray(ray_cluster, "run", corpus, *JOB, "--out", tmp_path / "out", "--workers", 2)
    said = finish(process, 1)
    assert said.count("bad.jsonl: line 501 is not JSON") == 1
    assert "again" not in said
    assert not (tmp_path / "out").exists()


def test_a_worker_of_other_versions_is_refused_by_both_names(tmp_path: Path, corpus: Path) -> None:
    from ray.cluster_utils import Cluster

    folder = tmp_path / "tiktoken-0.0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tiktoken\nVersion: 0.0.1\n")
    head = {**NODE, "include_dashboard": False, "env_vars": {"PYTHONPATH": str(tmp_path)}}
    other = Cluster(initialize_head=True, head_node_args=head)
    try:
        said = finish(on_ray(other, "run", corpus, *JOB, "--out", tmp_path / "out"), 1)
    finally:
        other.shutdown()
    last = said.splitlines()[-1]
    assert last.startswith("Error: the worker on ")
    assert f"it has tiktoken 0.0.1, the job tiktoken {version('tiktoken')}" in last


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, corpus: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs", "run", corpus, "--out", tmp_path / "out", "--engine", "ray",
         "--ray-address", "127.0.0.1:1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Error: no Ray cluster is at --ray-address 127.0.0.1:1: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "jobs.cluster", raising=False)
    result = qkvmill("run", corpus, "--out", tmp_path / "out", "--engine", "ray")
    assert result.status == 2
    assert result.stderr.splitlines()[-1].endswith(
        "--engine ray needs the package ray, which is not installed; install it with "
        "pip install 'qkvmill[cluster]'"
    )


def test_nothing_else_imports_ray(corpus: Path) -> None:
    code = f"from tests.helpers import succeed; import sys; succeed('plan', {str(corpus)!r}, "
    code += "'--out', 'nowhere'); import jobs.worker; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
