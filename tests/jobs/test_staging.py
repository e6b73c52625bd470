"""Copies beside the compute, on a stand-in for streams that does nothing until it is waited for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters import source
from jobs import compute, staging
from jobs import shards as jobshards
from jobs.staging import CopyStream, InPlace, staging_for
from tests.helpers import SMALL, succeed, write_corpus

CPU = torch.device("cpu")
REAL_COPY = torch.Tensor.copy_
LOCK = threading.RLock()  # the writer waits for events too


class Streams:
    """What was asked of the streams, in order, and the stream that is current."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.current: LateStream | None = None


class LateStream:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.late: list[Callable[[], object]] = []
        self.done = 0

    def wait_stream(self, other: object) -> None:
        assert other == "the stream that computes"
        self.streams.asked.append("wait for the compute")

    def run(self, stop: int) -> None:
        with LOCK:
            while self.done < stop:
                self.late[self.done]()
                self.done += 1

    def synchronize(self) -> None:
        self.streams.asked.append("wait for all")
        self.run(len(self.late))


class LateEvent:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def record(self, stream: LateStream) -> None:
        self.stream, self.stop = stream, len(stream.late)
        self.streams.asked.append(f"event {self.stop}")

    def synchronize(self) -> None:
        self.streams.asked.append(f"wait for {self.stop}")
        self.stream.run(self.stop)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """CUDA's streams and events, whose copies happen only where something waits for them."""
    streams = Streams()

    @contextmanager
    def within(stream: LateStream) -> Iterator[None]:
        streams.current = stream
        yield
        streams.current = None

    def copy(target: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return REAL_COPY(target, values)
        assert streams.current is not None, "a copy that is not waited for, on the wrong stream"
        streams.asked.append("copy")
        streams.current.late.append(lambda: REAL_COPY(target, values))
        return target

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: LateStream(streams))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: LateEvent(streams))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream that computes")
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    return streams


def host(rows: int) -> dict[str, Tensor]:
    """What a shard holds of a step, undefined."""
    return {"input_ids": torch.full((rows, 2), -1), "q": torch.full((rows, 3), torch.nan)}


def compute_step(copies: CopyStream, step: dict[str, Tensor], value: float) -> staging.Wait:
    for tensor in copies.target(step).values():
        tensor.fill_(value)
    return copies.send(step)


def test_the_cpu_computes_in_place() -> None:
    in_place = staging_for(CPU)
    assert isinstance(in_place, InPlace)
    step = host(2)
    assert in_place.target(step) is step
    in_place.send(step)()


def test_ids_stay_on_the_host_and_results_arrive_once_they_are_waited_for(
    streams: Streams,
) -> None:
    copies, step = CopyStream(CPU), host(4)
    target = copies.target(step)
    assert target["input_ids"] is step["input_ids"]
    assert target["q"].data_ptr() != step["q"].data_ptr()
    arrived = compute_step(copies, step, 7)
    assert step["q"].isnan().all()
    arrived()
    assert (step["q"] == 7).all()
    assert streams.asked == ["wait for the compute", "copy", "event 1", "wait for 1"]


def test_a_buffer_is_computed_to_again_once_its_copy_is_done(streams: Streams) -> None:
    copies = CopyStream(CPU)
    steps = [host(rows) for rows in (4, 4, 4, 2, 4)]
    for value, step in enumerate(steps):
        arrived = compute_step(copies, step, float(value))
        done = max(0, value - 1)  # the two last are still on their way
        assert [not s["q"].isnan().any() for s in steps[: value + 1]] == (
            [True] * done + [False] * (value + 1 - done)
        )
    arrived()
    assert [set(step["q"].flatten().tolist()) for step in steps] == [{0}, {1}, {2}, {3}, {4}]
    one = ["wait for the compute", "copy"]
    assert streams.asked == [
        *one, "event 1", *one, "event 2", "wait for 1", *one, "event 3", "wait for 2", *one,
        "event 4", "wait for 3", *one, "event 5", "wait for 5",
    ]  # fmt: skip


def test_a_closed_one_has_waited_and_holds_no_memory_and_goes_on(streams: Streams) -> None:
    copies, first, second = CopyStream(CPU), host(4), host(2)
    compute_step(copies, first, 1.0)
    copies.close()
    assert (first["q"] == 1).all()
    assert not any(copies._buffers)
    compute_step(copies, second, 2.0)()
    assert [len(held["q"]) for held in copies._buffers if held] == [2]
    assert (second["q"] == 2).all()


@pytest.mark.parametrize("largest", [1, 3, 99])
@pytest.mark.parametrize("method", ["direct", "tables"])
def test_an_export_by_way_of_device_buffers_has_the_same_bytes(
    tmp_path: Path, method: str, largest: int, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="Sphinx of black quartz, judge my vow. " * 90)
    exports = ("--export", "tokens", "--export", "features", "--export", "qkv")
    job = ("run", corpus, *SMALL, *exports, "--method", method, "--shard-size", "90kB")
    plain = succeed(*job, "--out", tmp_path / "plain", "--json").json
    assert plain["shards"] > 3
    real = source.fill

    def fill(windows: source.WindowSource, first: int, stop: int, out: dict[str, Tensor]) -> None:
        if stop - first > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(windows, first, stop, out)

    monkeypatch.setattr(jobshards, "fill", fill)
    monkeypatch.setattr(compute, "separate", lambda *_: False)
    monkeypatch.setattr(compute, "staging_for", CopyStream)
    for module in (compute, jobshards):
        monkeypatch.setattr(module, "first_step", lambda _: 4)
    result = succeed(*job, "--out", tmp_path / "out")
    assert ("the GPU's memory ran out" in result.stderr) == (largest < 4)
    assert streams.asked.count("copy") > 5 * plain["shards"]
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("out", "plain")]
    assert sums[0] == sums[1]
