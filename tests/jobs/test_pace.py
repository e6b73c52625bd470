"""How far a stage is, by a clock that the tests set."""

import threading
from types import SimpleNamespace

import pytest

from jobs import pace
from jobs.pace import Stage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def go_on(
    clock: Clock, stage: Stage, seconds: int, amount: int, tokens: int = 0, size: int = 0
) -> None:
    """Advance by so much a second."""
    for _ in range(seconds):
        clock.now += 1
        stage.add(tokens=tokens, bytes=size)
        stage(amount)


def test_reading_is_told_in_bytes_with_the_tokens_it_gives(clock: Clock) -> None:
    stage = Stage("tokenise", 4_000_000_000, "bytes")
    go_on(clock, stage, 120, 10_000_000, tokens=2_900_000)
    assert stage.text() == (
        "1.2 GB of 4.0 GB read (30%), 348M tokens, 10.0 MB/s, 2.9M tokens/s, 4 min 40 s left"
    )
    go_on(clock, stage, 280, 10_000_000, tokens=2_900_000)
    assert stage.text() == "4.0 GB of 4.0 GB read (100%), 1.2G tokens, 10.0 MB/s, 2.9M tokens/s"
    assert stage.last_text() == "4.0 GB read in 6 min 40 s, 1.2G tokens, 10.0 MB/s, 2.9M tokens/s"


def test_windows_are_told_with_the_shards_and_both_rates(clock: Clock) -> None:
    stage = Stage("windows", 9000, "windows")
    stage.extra("2 of 18 shards")
    go_on(clock, stage, 4, 256, tokens=256 * 1024, size=1_900_000_000)
    assert stage.text() == (
        "1,024 of 9,000 windows (11%), 2 of 18 shards, 262k tokens/s, 1.9 GB/s, 31 s left"
    )
    assert stage.last_text() == ("1,024 windows in 4.0 s, 2 of 18 shards, 262k tokens/s, 1.9 GB/s")


def test_other_units_have_a_rate_of_their_own(clock: Clock) -> None:
    stage = Stage("bench", 30, "rounds")
    go_on(clock, stage, 10, 1)
    assert stage.text() == "10 of 30 rounds (33%), 1 rounds/s, 20 s left"


def test_a_total_that_is_not_known_gives_no_share_and_no_time_left(clock: Clock) -> None:
    stage = Stage("tokenise", None, "bytes")
    go_on(clock, stage, 50, 1_000_000)
    assert stage.text() == "50.0 MB read, 1.0 MB/s"


def test_what_was_kept_counts_for_the_share_and_not_for_the_rate(clock: Clock) -> None:
    stage = Stage("tokenise", 1_000_000, "bytes")
    stage.skip(900_000)
    go_on(clock, stage, 20, 1_000)
    assert stage.text() == "920.0 kB of 1.0 MB read (92%), 1.0 kB/s, 1 min 20 s left"
    assert stage.last_text() == "20.0 kB read in 20.0 s (900.0 kB kept), 1.0 kB/s"


def test_the_time_left_follows_from_the_last_minute(clock: Clock) -> None:
    stage = Stage("windows", 3700, "windows")
    go_on(clock, stage, 100, 1)
    assert "1 h 0 min left" in stage.text()
    go_on(clock, stage, 60, 10)
    assert stage.text().endswith("5 min 0 s left")


def test_no_rate_is_told_before_there_is_a_basis_for_it(clock: Clock) -> None:
    stage = Stage("windows", 100, "windows")
    go_on(clock, stage, 2, 1)
    assert stage.text() == "2 of 100 windows (2%)"
    clock.now += 1
    assert stage.text().endswith("2 min 27 s left")
    slow = Stage("windows", 100, "windows")
    clock.now += 600
    assert slow.text() == "0 of 100 windows (0%)"


def test_advances_rarer_than_a_minute_still_give_a_time_left(clock: Clock) -> None:
    stage = Stage("windows", 1000, "windows")
    for _ in range(3):
        clock.now += 180
        stage(100)
    assert stage.text().endswith("21 min 0 s left")
    clock.now += 180
    assert stage.text().endswith("42 min 0 s left")  # the longer the next stays away


def test_the_last_moment_is_a_second_and_more_than_all_is_all(clock: Clock) -> None:
    stage = Stage("windows", 1000, "windows")
    go_on(clock, stage, 9, 111)
    assert stage.text().endswith("1 s left")
    stage(500)
    assert stage.text() == "1,499 of 1,000 windows (100%), 167 windows/s"
    assert Stage("copy", 0, "bytes").text() == "0 bytes of 0 bytes read"


def test_few_samples_are_held_however_many_the_advances(clock: Clock) -> None:
    stage = Stage("windows", None, "windows")
    for _ in range(10_000):
        clock.now += 0.125
        stage(1)
    assert len(stage._samples) <= 62
    assert stage.text() == "10,000 windows, 8 windows/s"


def test_threads_advance_it_at_once() -> None:
    stage = Stage("windows", None, "windows")

    def work() -> None:
        for _ in range(2000):
            stage(1)
            stage.add(tokens=2, bytes=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stage.amount, stage.tokens, stage.bytes) == (8000, 16000, 24000)


def test_the_check_comes_before_what_is_counted() -> None:
    def stop() -> None:
        raise InterruptedError

    stage = Stage("windows", 10, "windows", stop)
    for advance in (stage, stage.skip):
        with pytest.raises(InterruptedError):
            advance(1)
    assert stage.reached == 0
