import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from exporters.manifest import read_manifest
from exporters.reading import open_export
from jobs.commands.showexport import show_rows, show_stats
from tests.helpers import NOTEBOOK, SMALL, succeed


def test_an_export_is_summed_up(export: Path) -> None:
    text = succeed("inspect", export).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in ("documents 3", "tokenizer cl100k_base", "context length 16"):
        assert expected in lines
    for expected in (
        "d 32, 4 heads, 4 key/value heads of 8", "cpu, torch-cpu: the CPU was asked for",
        "tables: it was asked for", "distinct tokens", "none of", "skipped files",
        "[W, H 4, T 16, Dh 8]", "tokens/tokens-00001.safetensors", "windows 0 to 3",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_window_shows_its_texts_and_its_rows_as_stored(export: Path) -> None:
    text = succeed("inspect", export, "--window", 0).stdout
    assert "One fish, two fish, red fish, blue fish." in text
    assert "0 (a.txt)" in text
    shard = load_file(next((export / "shards").glob("shard-00001-*")))
    for name in ("x", "y"):
        assert f"{name} [16 rows x 32 columns]" in text
        assert f"{float(shard[name][0, 0, 0]):.6f}" in text
        assert f"{float(shard[name][0, 15, 31]):.6f}" in text


def test_a_window_without_features_shows_its_texts(tmp_path: Path) -> None:
    succeed("run", NOTEBOOK, "--out", tmp_path / "out", *SMALL)
    text = succeed("inspect", tmp_path / "out", "--window", 1).stdout
    assert "明星刀郎的歌火遍" in text
    assert "rows x" not in text


def test_brackets_in_a_text_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("[bold]not markup[/bold] [/] [red] " * 9)
    succeed("run", path, "--out", tmp_path / "out", *SMALL)
    assert "[bold]not markup[/bold]" in succeed("inspect", tmp_path / "out", "--window", 0).stdout


def test_the_middle_of_a_long_table_is_left_out() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    show_rows(console, "x", torch.arange(400.0).view(20, 20))
    text = console.export_text()
    assert "..." in text
    for value in ("0.000000", "19.000000", "380.000000", "399.000000"):
        assert value in text
    assert "210.000000" not in text


def test_a_head_shows_its_rows_as_stored(export: Path) -> None:
    text = succeed("inspect", export, "--window", 0, "--head", 3).stdout
    shard = load_file(next((export / "shards").glob("shard-00001-*")))
    for name, title in (
        ("q", "query head 3 of 4"),
        ("k", "key/value head 3 of 4, which query head 3 uses"),
    ):
        assert f"{name}, {title}, [16 rows x 8 columns]" in text
        assert f"{float(shard[name][0, 3, 0, 0]):.6f}" in text
        assert f"{float(shard[name][0, 3, 15, 7]):.6f}" in text


def test_statistics_are_a_table_and_their_progress_is_not_in_it(export: Path) -> None:
    result = succeed("inspect", export, "--stats", "--tensor", "input_ids", "--tensor", "q")
    header, ids, q = result.stdout.splitlines()[1:4]
    assert header.split() == [
        "tensor", "dtype", "shape", "min", "max", "mean", "std", "zeros", "NaN", "infinite",
    ]  # fmt: skip
    assert ids.split()[:2] == ["input_ids", "int32"]
    assert q.split()[:2] == ["q", "float32"]
    assert "stats: " in result.stderr


@pytest.mark.parametrize(
    ("count", "values", "shown"),
    [(0, 0, "0%"), (0, 7, "0%"), (1, 10**9, "0.001%"), (1, 3, "33.333%"), (7, 7, "100%"),
     (10**9 - 1, 10**9, "99.999%")],
)  # fmt: skip
def test_a_share_is_shown_as_none_or_all_only_where_it_is(
    count: int, values: int, shown: str
) -> None:
    found = {"dtype": "int32", "shape": [values], "values": values, "zeros": count, "nan": 0,
             "infinite": 0, "min": None, "max": None, "mean": None, "std": None}  # fmt: skip
    console = Console(width=120, file=io.StringIO(), record=True)
    show_stats(console, "a", {"t": found}, padded=False)
    assert f" {shown} " in console.export_text()


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_no_width_of_a_terminal_cuts_a_number_of_statistics_in_two(width: int) -> None:
    found = {"dtype": "bfloat16", "shape": [123_456, 12, 1024, 64], "values": 1, "zeros": 0,
             "nan": 0, "infinite": 0, "min": -1.23456e-30, "max": 1.0, "mean": 0.125,
             "std": 2.5e-7}  # fmt: skip
    console = Console(width=width, file=io.StringIO(), record=True)
    title = "exports/" + "long/" * 20 + "name, all windows"
    show_stats(console, title, {"q": found, "k": found}, padded=True)
    lines = console.export_text().splitlines()
    assert lines[0] == title
    assert "padded places count too" in lines[-1]
    for whole in ("-1.23456e-30", "0.125", "2.5e-07", "[123456, 12, 1024, 64]"):
        assert sum(whole in line for line in lines) == 2, whole


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_rows_show_small_and_large_values_at_any_width(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    values = torch.tensor([-2.5e-30, 1e-3, -999.5, 0.0, 7.0, 1e3, -6.5e30], dtype=torch.float64)
    show_rows(console, "q, a title that is longer than the table is wide", values.view(1, 7))
    lines = console.export_text().splitlines()
    assert lines[0] == "q, a title that is longer than the table is wide [1 rows x 7 columns]"
    shown = lines[2].split()
    assert shown[:2] == ["0", "-2.5000e-30"]
    assert shown[-1] == "-6.5000e+30"
    if width == 200:
        assert shown[2:-1] == ["0.001000", "-999.500000", "0.000000", "7.000000", "1.0000e+03"]


def test_statistics_of_padded_windows_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One fish, two fish.\n" * 9)
    succeed("run", path, "--out", tmp_path / "out", *SMALL, "--tail", "pad")
    last = len(open_export(tmp_path / "out")) - 1
    for options, said in (((), True), (("--window", last), True), (("--window", 0), False)):
        text = succeed("inspect", tmp_path / "out", "--stats", *options).stdout
        assert ("padded places count too" in text) is said


def test_of_many_files_the_ends_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One fish, two fish, red fish, blue fish.\n" * 40)
    options = (*SMALL, "--batch-size", 1, "--shard-size", "16KB")
    succeed("run", path, "--out", tmp_path / "out", *options)
    text = succeed("inspect", tmp_path / "out").stdout
    names = [entry.name for entry in read_manifest(tmp_path / "out").files]
    assert len(names) > 11
    assert f"files: {len(names)}, the first and last 5" in text
    assert [name in text for name in names] == [
        place < 5 or place >= len(names) - 5 for place in range(len(names))
    ]
