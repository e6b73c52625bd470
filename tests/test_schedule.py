"""The simulated schedule: closed forms, a simulation that gives pieces one by one, and order."""

import heapq
import math
from random import Random

import pytest

from benchmarks.schedule import DAY, Cluster, Stage, ideal, parsed, rows, simulate, stages

PLAIN = Cluster(nodes=7, cores=4)
TROUBLED = Cluster(nodes=7, cores=4, slow_share=0.3, slowdown=3.0, failures=40.0, away=300.0)


def seconds(stage: Stage, cluster: Cluster, seed: int = 0, slices: float = 8.0) -> float:
    return simulate(stage, cluster, Random(seed), slices).seconds


def one_by_one(pieces: int, node_seconds: list[float], cores: int) -> float:
    """When the last piece is done if each core takes the next one as soon as it is free."""
    free = [(0.0, second) for second in node_seconds for _ in range(cores)]
    heapq.heapify(free)
    for _ in range(pieces):
        at, second = free[0]
        heapq.heapreplace(free, (at + second, second))
    return max(at for at, _ in free)


@pytest.mark.parametrize("pieces", [1, 27, 28, 29, 1000, 28_000])
def test_without_trouble_it_is_the_work_shared_by_all_cores_in_whole_pieces(pieces: int) -> None:
    stage = Stage(name="shards", pieces=pieces, seconds=2.5)
    assert seconds(stage, PLAIN) == pytest.approx(math.ceil(pieces / 28) * 2.5, rel=1e-12)


@pytest.mark.parametrize("limit", ["storage", "node", "both"])
def test_what_limits_the_cluster_is_what_the_stage_takes(limit: str) -> None:
    shared = {"storage": 3.0} if limit != "node" else {}
    node_rate = 0.5 if limit != "storage" else math.inf
    stage = Stage(name="shards", pieces=2800, seconds=2.0, node_rate=node_rate, shared=shared)
    expected = 2800 / min(3.0 if shared else math.inf, 7 * node_rate)
    assert seconds(stage, PLAIN) == pytest.approx(expected, rel=1e-9)
    assert ideal(stage, PLAIN)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pieces", [5, 500, 20_011])
def test_slow_nodes_are_as_when_pieces_are_given_one_by_one(seed: int, pieces: int) -> None:
    cluster = Cluster(nodes=9, cores=3, slow_share=0.4, slowdown=2.7)
    draw = Random(seed)
    paces = [1.3 * 2.7 if draw.random() < 0.4 else 1.3 for _ in range(9)]
    expected = one_by_one(pieces, paces, 3)
    stage = Stage(name="shards", pieces=pieces, seconds=1.3)
    slack = 1.3 * 2.7  # which node takes the last pieces may differ where several are free
    assert abs(seconds(stage, cluster, seed, math.inf) - expected) <= slack
    assert abs(seconds(stage, cluster, seed) - expected) <= slack + 0.01 * expected


@pytest.mark.parametrize("shared", [{}, {"storage": 8.0}], ids=["computing", "storage"])
def test_giving_many_waves_at_once_changes_nothing_by_more_than_a_percent(
    shared: dict[str, float],
) -> None:
    stage = Stage(name="shards", pieces=60_000, seconds=2.0, shared=shared)
    for seed in range(4):
        fine = simulate(stage, TROUBLED, Random(seed), math.inf)
        coarse = simulate(stage, TROUBLED, Random(seed))
        assert coarse.seconds == pytest.approx(fine.seconds, rel=0.01)
        assert coarse.lost == pytest.approx(fine.lost, abs=0.01 * stage.pieces)


def test_a_node_that_fails_loses_what_it_had_under_way_and_what_it_would_have_done() -> None:
    cluster = Cluster(nodes=1, cores=2, failures=DAY / 1000, away=50.0)
    stage = Stage(name="shards", pieces=100, seconds=10.0)
    draw = Random(7)
    draw.random()  # whether the node is slow
    fails = draw.expovariate(1 / 1000)
    assert 10.0 < fails < 500.0
    assert fails + 50.0 + draw.expovariate(1 / 1000) > 600.0
    done = int(fails / 10.0)
    outcome = simulate(stage, cluster, Random(7))
    assert outcome.seconds == pytest.approx(fails + 50.0 + (50 - done) * 10.0)
    assert outcome.lost == pytest.approx(2 * (fails / 10.0 - done))


def test_trouble_makes_it_slower_and_more_of_it_slower_still() -> None:
    stage = Stage(name="shards", pieces=60_000, seconds=2.0)
    calm = seconds(stage, PLAIN)
    for name, values in {"slow_share": [0.1, 0.5, 1.0], "failures": [20.0, 200.0, 2000.0]}.items():
        sums = [calm * 20]
        for value in values:
            changed = {"slow_share": 0.0, "slowdown": 2.0, "away": 300.0, name: value}
            cluster = Cluster(nodes=7, cores=4, **changed)
            sums.append(sum(seconds(stage, cluster, seed) for seed in range(20)))
        assert sums == sorted(set(sums)), name
    halved = Cluster(nodes=7, cores=4, slow_share=1.0, slowdown=2.0)
    assert seconds(stage, halved) == pytest.approx(2 * calm, rel=1e-3)


def test_storage_that_is_the_limit_hides_slow_nodes() -> None:
    stage = Stage(name="shards", pieces=28_000, seconds=2.0, shared={"storage": 5.0})
    slow = Cluster(nodes=7, cores=4, slow_share=0.5, slowdown=1.5)
    assert seconds(stage, slow) == pytest.approx(28_000 / 5.0, rel=0.01)


def test_the_same_seed_is_the_same_round() -> None:
    stage = Stage(name="shards", pieces=60_000, seconds=2.0)
    assert seconds(stage, TROUBLED, 5) == seconds(stage, TROUBLED, 5)
    assert seconds(stage, TROUBLED, 5) != seconds(stage, TROUBLED, 6)


def test_the_stages_of_a_job_have_its_bytes() -> None:
    options = parsed(["--tokens", "1024e4", "--shard-size", "512e6", "--text-bytes", "4.5"])
    tokens, shards, total, shard_tokens = stages(options)
    assert shard_tokens == 48 * 1024  # six batches of eight windows
    assert total == 10_000 * (1024 * (3 * 768 * 4 + 3 * 4) + 8)
    assert shards.pieces == math.ceil(10_000 / 48)
    assert tokens.pieces == math.ceil(1024e4 * 4.5 / 524_288)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "0 is not a whole number above 0"),
        (["--write", "0"], "0 is not above 0"),
        (["--slow-share", "2"], "2 is not between 0 and 1"),
        (["--failures", "5000"], "give fewer --failures or a smaller --shard-size"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        rows(parsed(arguments))
    said = capsys.readouterr().err if stopped.value.code == 2 else str(stopped.value.code)
    assert message in said
