"""Exports in a bucket of a real server over HTTP: killed, resumed, cut off half way, verified.

tests/exporters/test_claims.py has what needs no server.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from exporters.reading import open_export
from tests.helpers import ROOT, SMALL, qkvmill, succeed, write_corpus

pytest.importorskip("s3fs")
pytest.importorskip("moto")

SECONDS = 60
BUCKET = "s3://qkvmill-tests"
JOB = (*SMALL, "--tokenizer", "gpt2", "--vocab-size", "corpus", "--method", "tables",
       "--shard-size", "20kB", "--batch-size", 1)  # fmt: skip


class Proxy:
    """Passes bytes between clients and a server; cuts requests that hold `victim` off half way."""

    def __init__(self, port: int) -> None:
        self.victim: bytes | None = None
        self.cuts = 0
        self._server = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        left: int | None = None
        with closing(source), closing(target), suppress(OSError):
            while data := source.recv(1 << 16):
                line = data.partition(b"\r\n")[0]
                if self.victim is not None and line.startswith(b"PUT") and self.victim in line:
                    left = 300_000
                if left is not None:
                    left -= len(data)
                    if left < 0:
                        self.cuts += 1
                        source.shutdown(socket.SHUT_RDWR)
                        target.shutdown(socket.SHUT_RDWR)
                        return
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """A server of buckets in a process of its own, and the way there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        give_up = time.monotonic() + SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)
        proxy = Proxy(port)
        yield proxy
        proxy.close()
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def store(proxy: Proxy) -> Iterator[Any]:
    """The bucket's filesystem; commands of this process and of others use the same server."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "someone")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        system = fsspec.filesystem("s3")
        system.mkdir(BUCKET)
        yield system
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("corpus"),
        a="The five boxing wizards jump quickly. " * 40,
        b="Sphinx of black quartz, judge my vow.\n" * 40,
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The export of the job, in a folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    succeed("run", corpus, "--out", out, *JOB)
    return out


@pytest.fixture(scope="module")
def remote(store: Any, corpus: Path) -> str:
    """The same export, in a bucket."""
    out = f"{BUCKET}/deep/finished"
    succeed("run", corpus, "--out", out, *JOB)
    return out


def names(store: Any, out: str) -> list[str]:
    store.invalidate_cache()
    return sorted(name.removeprefix(f"{out[5:]}/") for name in store.find(out))


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_export_is_the_same_as_in_a_folder(store: Any, local: Path, remote: str) -> None:
    files = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert sorted(files) == names(store, remote)
    for name in files - {"run.json"}:
        assert (local / name).read_bytes() == store.cat_file(f"{remote}/{name}"), name
    assert "all as they were written" in succeed("verify", remote).stdout
    shown = succeed("inspect", local, "--window", 3).stdout
    assert shown == succeed("inspect", remote, "--window", 3).stdout


def test_workers_of_a_loader_read_it(local: Path, remote: str) -> None:
    windows = open_export(remote)
    assert pickle.loads(pickle.dumps(windows)).root == windows.root
    windows[0]  # opens what must not be shared
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        windows,  # type: ignore[arg-type]
        batch_size=16,
        num_workers=2,
        multiprocessing_context="fork",
    )
    for found, expected in zip(loader, open_export(local).batches(16), strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            assert torch.equal(found[name], expected[name]), name


def test_a_compact_export_expands_from_bucket_to_bucket(
    store: Any, corpus: Path, local: Path
) -> None:
    compact, full = f"{BUCKET}/compact", f"{BUCKET}/expanded"
    succeed("run", corpus, "--out", compact, *JOB, "--artifact", "compact")
    first = open_export(compact)[0]
    for name, tensor in open_export(local)[0].items():
        assert torch.equal(first[name], tensor), name
    succeed("expand", compact, "--out", full, "--device", "cpu")
    names_of = {name for name in names(store, full) if name.startswith("shards/")}
    for name in names_of:
        assert (local / name).read_bytes() == store.cat_file(f"{full}/{name}"), name
    succeed("verify", full)


def test_killed_twice_it_goes_on_to_the_same_bytes(
    store: Any, corpus: Path, local: Path, tmp_path: Path
) -> None:
    out = f"{BUCKET}/killed"
    kept = 0
    for _ in range(2):
        job = command("run", corpus, "--out", out, *JOB, "--scratch", tmp_path)
        give_up = time.monotonic() + SECONDS
        while True:
            lines = sum(name.startswith(".work/journal/") for name in names(store, out))
            if lines >= kept + 4:
                break
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < give_up
        job.send_signal(signal.SIGKILL)
        job.communicate()
        assert "manifest.json" not in names(store, out)
        kept = sum(name.startswith(".work/journal/") for name in names(store, out))
    assert "no finished export" in qkvmill("verify", out).stderr
    shards = [name for name in names(store, out) if name.startswith("shards/")]
    store.pipe_file(f"{out}/{shards[0]}", b"something else")
    store.rm_file(f"{out}/{shards[1]}")
    result = succeed("run", corpus, "--out", out, *JOB)
    assert f"{out} holds an unfinished export: going on, " in result.stderr
    for name in shards[:2]:
        assert f"{out}/{name} is not as it was written: it is made again" in result.stderr
    assert (local / "SHA256SUMS").read_bytes() == store.cat_file(f"{out}/SHA256SUMS")
    succeed("verify", out)
    assert not any(name.startswith(".work/") for name in names(store, out))


def test_an_upload_that_is_cut_off_leaves_nothing_that_looks_done(
    store: Any, proxy: Proxy, tmp_path: Path
) -> None:
    out, victim = f"{BUCKET}/cut", "shards/shard-00002-of-00002.safetensors"
    text = write_corpus(tmp_path / "corpus", a="The five boxing wizards jump quickly. " * 1500)
    job = ("run", text, *SMALL, "--context-length", 128, "--d-model", 256, "--tokenizer", "gpt2",
           "--vocab-size", "corpus", "--method", "tables", "--shard-size", "20MiB")  # fmt: skip
    proxy.victim = victim.encode()
    result = qkvmill(*job, "--out", out)
    proxy.victim = None
    assert proxy.cuts > 0
    assert result.status == 1
    assert f"Error: {out}/{victim} could not be written: " in result.stderr
    assert result.stderr.count("Error") == 1
    there = names(store, out)
    assert victim not in there
    assert "manifest.json" not in there
    assert "no finished export" in qkvmill("verify", out).stderr
    succeed(*job, "--out", out)
    first = store.info(f"{out}/shards/shard-00001-of-00002.safetensors")
    assert first["ETag"].strip('"').endswith("-3"), "it went in parts"
    succeed(*job, "--out", tmp_path / "local")
    sums = (tmp_path / "local/SHA256SUMS").read_bytes()
    assert sums == store.cat_file(f"{out}/SHA256SUMS")
    succeed("verify", out)


def test_verify_finds_what_changed(store: Any, corpus: Path) -> None:
    out = f"{BUCKET}/changed"
    succeed("run", corpus, "--out", out, *JOB)
    shards = [name for name in names(store, out) if name.startswith("shards/")]
    data = bytearray(store.cat_file(f"{out}/{shards[0]}"))
    data[-1] ^= 1
    store.pipe_file(f"{out}/{shards[0]}", bytes(data))
    store.rm_file(f"{out}/{shards[1]}")
    store.pipe_file(f"{out}/shards/other", b"1")
    result = qkvmill("verify", out)
    assert result.status == 1
    assert f"{shards[0]}: its bytes do not match" in result.stderr
    assert f"{shards[1]}: missing" in result.stderr
    assert "shards/other: extra" in result.stderr


def test_what_prevents_an_export_is_said_in_one_line(store: Any, corpus: Path) -> None:
    run = ("run", corpus, *JOB, "--out")
    result = qkvmill(*run, "s3://there-is-no-such-bucket/x")
    assert result.status == 1
    assert "could not be listed: there is no such bucket" in result.stderr
    assert not store.exists("s3://there-is-no-such-bucket")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    gone = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    jobs = [command(*run, f"{BUCKET}/x", **environment) for environment in (nobody, gone)]
    for job, said in zip(jobs, ("credentials", "Could not connect"), strict=True):
        stderr = job.communicate(timeout=SECONDS)[1]
        assert job.returncode == 1
        assert said in stderr
        assert "Traceback" not in stderr


def test_workers_of_a_cluster_upload_their_shards_and_a_killed_job_goes_on(
    tmp_path: Path, store: Any, corpus: Path
) -> None:
    options = (*JOB, "--shard-size", "100kB")
    succeed("run", corpus, "--out", tmp_path / "here", *options)
    out = f"{BUCKET}/cluster"
    command = [sys.executable, "-m", "jobs", "run", str(corpus), "--out", out, *map(str, options),
               "--scratch", str(tmp_path), "--engine", "ray", "--workers", "2"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        give_up = time.monotonic() + 2 * SECONDS
        while len([name for name in store.find(out) if "/shards/" in name]) < 3:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        job.kill()
        job.communicate()
    assert qkvmill("verify", out).status == 1
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "holds an unfinished export: going on" in done.stderr
    assert store.cat(f"{out}/SHA256SUMS") == (tmp_path / "here" / "SHA256SUMS").read_bytes()
    succeed("verify", out)
