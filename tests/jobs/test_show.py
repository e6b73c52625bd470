import io
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from jobs.show import show_rows
from tests.helpers import NOTEBOOK, SMALL, succeed


def test_an_export_is_summed_up(export: Path) -> None:
    text = succeed("inspect", export).stdout
    for expected in (
        "documents           3", "tokenizer           cl100k_base", "context length      16",
        "d 32, 4 heads, 4 key/value heads of 8", "cpu, torch-cpu: the CPU was asked for",
            "tables: it was asked for", "distinct tokens",
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
