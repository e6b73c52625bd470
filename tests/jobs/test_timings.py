import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.timings import Spent, Timing, held_back, slowest, timings
from tests.helpers import ROOT, SMALL, succeed, write_corpus


def found(**spent: Spent) -> tuple[Timing, ...]:
    """The timings of a job of 100 s, 10 of them before the first stage."""
    return timings(spent, 10.0, 100.0)


WINDOWS = Spent(61.0, tokens=6100, bytes=610, parts={"compute": 20.0, "write": 40.0})


def test_shares_add_up_to_all_of_the_time_and_parts_to_their_stage() -> None:
    rows = found(tokenise=Spent(25.0, tokens=1000, bytes=5000), windows=WINDOWS)
    assert [(row.name, row.within, row.seconds, row.share) for row in rows] == [
        ("start-up", None, 10.0, 0.1), ("tokenise", None, 25.0, 0.25),
        ("windows", None, 61.0, 0.61), ("compute", "windows", 20.0, 0.2),
        ("write", "windows", 40.0, 0.4), ("idle", "windows", 1.0, 0.01), ("other", None, 4.0, 0.04),
    ]  # fmt: skip
    rates = {row.name: (row.tokens_per_second, row.bytes_per_second) for row in rows}
    assert rates == {
        "start-up": (None, None), "tokenise": (40.0, 200.0), "windows": (100.0, 10.0),
        "compute": (None, None), "write": (None, None), "idle": (None, None), "other": (None, None),
    }  # fmt: skip


def test_nodes_of_a_cluster_have_rows_with_their_tokens_a_second() -> None:
    spent = Spent(61.0, tokens=6100, parts={"compute": 20.0}, nodes={"b": 610, "a": 5490})
    rows = found(windows=spent)
    nodes = [(row.name, row.within, row.tokens_per_second) for row in rows if row.node]
    assert nodes == [("a", "windows", 90.0), ("b", "windows", 10.0)]
    assert held_back(rows) == "windows took 61% of the time, most of it waiting"


@pytest.mark.parametrize(
    ("stages", "name", "sentence"),
    [
        pytest.param(
            {"tokenise": Spent(25.0), "windows": WINDOWS}, "windows",
            "windows took 61% of the time, most of it writing and hashing", id="writing",
        ),
        pytest.param(
            {"layer": Spent(27.0), "windows": Spent(48.0, parts={"compute": 25.0, "write": 22.0})},
            "windows", "windows took 48% of the time, most of it computing", id="computing",
        ),
        pytest.param(
            {"windows": Spent(80.0, parts={"compute": 30.0, "write": 29.0})}, "windows",
            "windows took 80% of the time, the largest part of it computing", id="mixed",
        ),
        pytest.param(
            {"tokenise": Spent(50.0), "windows": Spent(40.0, parts={"compute": 40.0})}, "tokenise",
            "tokenise took 50% of the time", id="no-parts",
        ),
        pytest.param(
            {"layer": Spent(4.0), "windows": Spent(5.0, parts={"compute": 5.0})}, "windows",
            "other took 81% of the time; of the stages, windows took 5% of the time, most of it "
            "computing", id="neither",
        ),
        pytest.param({}, "other", "other took 90% of the time", id="no-stages"),
    ],
)  # fmt: skip
def test_what_held_a_job_back_is_named(stages: dict[str, Spent], name: str, sentence: str) -> None:
    rows = found(**stages)
    assert slowest(rows).name == name
    assert held_back(rows) == sentence


def test_a_job_that_took_no_time_has_no_shares() -> None:
    assert {row.share for row in timings({"layer": Spent()}, 0.0, 0.0)} == {0.0}


STAGES = [
    "start-up",
    "tokenise",
    "layer",
    "weights",
    "build",
    "windows",
    "compute",
    "write",
    "idle",
    "other",
]


def whole(stages: Sequence[dict[str, Any]], figure: str) -> float:
    return float(sum(stage[figure] for stage in stages if stage["within"] is None))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", a="How vexingly quick daft zebras jump! " * 40)


def test_run_and_expand_show_where_the_time_went(tmp_path: Path, corpus: Path) -> None:
    compact, full = tmp_path / "compact", tmp_path / "full"
    run = succeed("run", corpus, "--out", compact, *SMALL, "--artifact", "compact").stdout
    expand = succeed("expand", compact, "--out", full, "--device", "cpu").stdout
    for text, stages in (
        (run, ["start-up", "tokenise", "layer", "weights", "build", "other"]),
        (expand, ["start-up", "check source", "copy", "windows", "compute", "write", "other"]),
    ):
        table = text[text.index("\n stage ") :]
        assert table.splitlines()[1].split() == ["stage", "time", "share", "tokens/s", "MB/s"]
        assert sorted(stages, key=lambda name: table.index(f" {name} ")) == stages
        assert "% of the time" in table.splitlines()[-1]
    assert "% of the time" not in succeed("expand", compact, "--out", full, "--quiet").stdout


def test_json_and_run_json_hold_the_stages(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    summary = succeed("run", corpus, "--out", out, *SMALL, "--method", "tables", "--json").json
    stored = json.loads((out / "run.json").read_text("utf-8"))
    for record in (summary, stored):
        assert [stage["name"] for stage in record["stages"]] == STAGES
        assert whole(record["stages"], "share") == pytest.approx(1, abs=0.001)
        by_name = {stage["name"]: stage for stage in record["stages"]}
        assert record["seconds"] == {
            name: by_name[name]["seconds"]
            for name in STAGES
            if name not in ("start-up", "idle", "other")
        }
        parts = sum(by_name[name]["share"] for name in ("compute", "write", "idle"))
        assert parts == pytest.approx(by_name["windows"]["share"], abs=0.001)
        assert by_name["windows"]["tokens_per_second"] > 0


@pytest.mark.parametrize("method", ["direct", "tables"])
def test_the_window_stage_counts_all_its_tokens_and_bytes(
    tmp_path: Path, corpus: Path, method: str
) -> None:
    job = ("run", corpus, "--out", tmp_path / "out", *SMALL, "--method", method)
    summary = succeed(*job, "--shard-size", "20kB", "--json").json
    windows = next(stage for stage in summary["stages"] if stage["name"] == "windows")
    tokens, shard_bytes = 16 * summary["windows"], 0
    for shard in (tmp_path / "out" / "shards").iterdir():
        header = int.from_bytes(shard.read_bytes()[:8], "little")
        shard_bytes += shard.stat().st_size - 8 - header
    ratio = windows["bytes_per_second"] / windows["tokens_per_second"]
    assert ratio == pytest.approx(shard_bytes / tokens, rel=0.001)
    assert windows["tokens_per_second"] * windows["seconds"] == pytest.approx(tokens, rel=0.05)


def test_the_time_of_a_command_is_that_of_its_process(tmp_path: Path, corpus: Path) -> None:
    command = ["run", corpus, "--out", tmp_path / "out", *SMALL, "--json"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, command)], cwd=ROOT, env=dict(os.environ),
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    took = time.monotonic() - began
    stages = json.loads(done.stdout)["stages"]
    assert 0.5 * took < whole(stages, "seconds") < took
    assert stages[0]["seconds"] > 0.3  # of which imports are most
