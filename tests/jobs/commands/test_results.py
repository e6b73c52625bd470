import pytest

from jobs.commands.results import PIPE_COLUMNS, stdout


@pytest.mark.parametrize(
    ("said", "columns"),
    [("80", 80), (None, PIPE_COLUMNS), ("0", PIPE_COLUMNS), ("wide", PIPE_COLUMNS),
     ("99999", PIPE_COLUMNS)],
)  # fmt: skip
def test_a_pipe_is_as_wide_as_columns_says(
    said: str | None, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        monkeypatch.setenv("COLUMNS", said)
    assert stdout().width == columns
