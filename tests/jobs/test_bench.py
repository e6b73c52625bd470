from pathlib import Path

import pytest
import torch

from jobs import bench
from jobs.bench import BenchConfig, zipf_ids
from jobs.errors import DisagreementError
from jobs.progress import Reporter
from kernels import combine, direct
from kernels.layer import seeded_layer
from kernels.packed import PackedLayer
from kernels.tables import Tables, build
from tests.helpers import DATA, needs_c, qkvmill, succeed, write_corpus

SMALL = ("--d-model", 32, "--heads", 2, "--context-length", 16, "--tokens", 64, "--rounds", 2)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.0)


def test_every_way_is_checked_and_timed() -> None:
    (result,) = succeed("bench", *SMALL, "--device", "cpu", "--json").json
    ways = {way["name"]: way for way in result["ways"]}
    names = {"notebook", "addmm", "direct", "tables", "tables+build", "multiply", "copy"}
    assert names <= ways.keys()
    assert ways["addmm"]["ratio_to_addmm"] == 1.0
    assert ways["notebook"]["ratio_to_notebook"] == 1.0
    for way in ways.values():
        assert way["seconds"] > 0
        assert way["tokens_per_second"] == pytest.approx(64 / way["seconds"])
        assert way["error"] is None or way["error"] < 1e-5
    assert result["direct"]["kernel"] == result["tables"]["kernel"] == "torch-cpu"
    figures = result["figures"]
    assert figures["rows"] == result["distinct_tokens"] + 16
    assert figures["bytes"] == 4 * (figures["rows"] * 96 + result["distinct_tokens"])
    assert figures["moved_bytes"] == figures["bytes"] + 64 * 96 * 4
    expected = figures["moved_bytes"] / ways["tables"]["seconds"]
    assert figures["bytes_per_second"] == pytest.approx(expected)
    assert result["job"] is None


@pytest.mark.parametrize(
    ("combining", "break_even"),
    [pytest.param(1e-3, 85, id="pays"), pytest.param(4e-3, None, id="never-pays")],
)
def test_figures_of_tables_follow_from_the_times(combining: float, break_even: int | None) -> None:
    layer = seeded_layer(
        vocabulary_size=50, d_model=32, heads=2, kv_heads=2, context_length=16,
        positions="sinusoidal", seed=0,
    )  # fmt: skip
    tables = build(layer, torch.arange(9, dtype=torch.int32), torch.device("cpu"))
    seconds = {
        "direct": 4e-3, "tables": combining, "tables+build": combining + 4e-3, "copy": 5e-4,
    }  # fmt: skip
    results = {
        name: bench.WayResult(
            name=name, what="", seconds=value, tokens_per_second=64 / value,
            ratio_to_notebook=1.0, ratio_to_addmm=1.0, error=None,
        )
        for name, value in seconds.items()
    }  # fmt: skip
    figures = bench._figures(layer, tables, 64, results)
    assert figures.build_seconds == pytest.approx(4e-3)
    # What building takes over what each of 64 tokens saves: 4 ms / (3 ms / 64).
    assert figures.break_even_tokens == break_even
    written, read = 64 * 96 * 4, 4 * ((9 + 16) * 96 + 9)
    assert figures.copy_bytes_per_second == pytest.approx(2 * written / 5e-4)
    assert figures.share_of_copy == pytest.approx((written + read) / combining * 5e-4 / 2 / written)


@needs_c
def test_with_a_c_compiler_the_tables_are_by_c_without_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (result,) = succeed("bench", *SMALL, "--device", "cpu", "--json").json
    whats = {way["name"]: way["what"] for way in result["ways"]}
    assert whats["tables"].startswith("C, into")
    monkeypatch.setenv("CC", "no-such-compiler")
    (result,) = succeed("bench", *SMALL, "--device", "cpu", "--json").json
    whats = {way["name"]: way["what"] for way in result["ways"]}
    assert whats["tables"].startswith("torch-cpu, into")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_table_names_the_ways(dtype: str) -> None:
    result = succeed("bench", *SMALL, "--device", "cpu", "--dtype", dtype)
    assert f"d 32, T 16, {dtype}" in result.stdout
    assert "notebook" in result.stdout


def test_nothing_is_timed_where_the_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    project = direct.project

    def wrong(
        layer: PackedLayer, ids: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        project(layer, ids, q, k, v)
        v[0, 0, 0, 0] += 1e-3

    monkeypatch.setattr(direct, "project", wrong)
    config = BenchConfig(d_model=32, heads=2, context_length=16, tokens=64, device="cpu")
    with pytest.raises(DisagreementError, match=r"direct is 0\.001 from float64"):
        bench.bench(config, Reporter(quiet=True))


def test_tables_that_differ_stop_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    combined = combine.combine

    def wrong(
        tables: Tables, rows: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        combined(tables, rows, q, k, v)
        k[1, 0, 0, 0] -= 1e-3

    monkeypatch.setattr(combine, "combine", wrong)
    config = BenchConfig(d_model=32, heads=2, context_length=16, tokens=64, device="cpu")
    with pytest.raises(DisagreementError, match=r"tables is 0\.001 from float64"):
        bench.bench(config, Reporter(quiet=True))


def test_with_a_corpus_a_whole_job_is_timed_by_stages(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--scratch", tmp_path, "--json")
    (result,) = succeed("bench", DATA / "corpus", *SMALL, *options).json
    job = result["job"]
    stages = {stage["name"]: stage for stage in job["stages"]}
    whole = ["start-up", "tokenise", "layer", "weights", "build", "windows", "other"]
    assert list(stages) == [*whole[:-1], "compute", "write", "idle", "other"]
    assert {stages[name]["within"] for name in ("compute", "write", "idle")} == {"windows"}
    slowest = max(whole[1:-1], key=lambda name: float(stages[name]["seconds"]))
    assert stages[job["held_back_by"]]["seconds"] == stages[slowest]["seconds"]
    assert sum(stages[name]["share"] for name in whole) == pytest.approx(1.0, abs=0.001)
    assert job["seconds"] == pytest.approx(sum(stages[name]["seconds"] for name in whole))
    assert job["method"] == "tables"
    assert list(tmp_path.iterdir()) == []
    assert result["tokens"] == 64


def test_a_short_corpus_is_said_and_one_shorter_than_a_window_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, a="one two three four five six seven eight nine ten " * 4)
    result = succeed("bench", corpus, *SMALL, "--device", "cpu", "--scratch", tmp_path)
    assert "a round takes 32 instead of 64" in result.stderr
    assert "a whole job by direct" in result.stdout
    assert "% of the time" in result.stdout.splitlines()[-1]
    short = write_corpus(tmp_path / "short", a="one two")
    assert "too few for --context-length 16" in qkvmill("bench", short, *SMALL).stderr


def test_a_way_of_torchs_that_differs_stops_the_bench_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "addmm", lambda bias, x, w: torch.full((64, 96), 7.0))
    config = BenchConfig(d_model=32, heads=2, context_length=16, tokens=64, device="cpu")
    with pytest.raises(DisagreementError, match="addmm is"):
        bench.bench(config, Reporter(quiet=True))


def test_the_last_windows_are_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    project = direct.project

    def short(
        layer: PackedLayer, ids: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        project(layer, ids[:3], q[:3], k[:3], v[:3])

    monkeypatch.setattr(direct, "project", short)
    config = BenchConfig(d_model=32, heads=2, context_length=16, tokens=64, device="cpu")
    with pytest.raises(DisagreementError, match="direct gives NaN"):
        bench.bench(config, Reporter(quiet=True))


def test_what_was_never_written_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "project", lambda *_: None)
    config = BenchConfig(d_model=32, heads=2, context_length=16, tokens=64, device="cpu")
    with pytest.raises(DisagreementError, match="direct gives NaN"):
        bench.bench(config, Reporter(quiet=True))


def test_without_a_compiler_the_compiled_way_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    result = succeed("bench", *SMALL, "--device", "cpu")
    assert "compile is left out: there is no C++ compiler" in result.stderr
    assert "torch.compile" not in result.stdout


def test_ids_follow_zipfs_law() -> None:
    ids = zipf_ids(BenchConfig(d_model=8, heads=1, tokens=2**16, vocabulary_size=1000))
    counts = torch.bincount(ids.flatten(), minlength=1000).sort(descending=True).values
    assert float(counts[0] / counts[9]) == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--d-model", 30, "--heads", 4), "--d-model 30"),
        (("--d-model", 64, "--tokens", 9, "--context-length", 16), "--tokens 9"),
        (("--d-model", 0), "--d-model"),
        (("--d-model", 7), "--d-model 7 is less than tables need, 8"),
        (("--scratch", "/tmp"), "--scratch has no effect without a corpus"),
        (("--tf32", "--dtype", "float16"), "--tf32 has no effect with --dtype float16"),
    ],
)
def test_sizes_that_cannot_be_are_named(options: tuple[object, ...], culprit: str) -> None:
    result = qkvmill("bench", *options)
    assert result.status == 2
    assert culprit in result.stderr
