import pytest

from jobs.units import brief, duration


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"), (7, "7"), (999, "999"), (3.25, "3.2"), (99.97, "100"), (999.6, "1.0k"),
        (1_234, "1.2k"), (54_000, "54.0k"), (540_000, "540k"), (999_600, "1.0M"),
        (2_900_000, "2.9M"), (12_345_678, "12.3M"), (7.5e9, "7.5G"), (1.5e15, "1500T"),
    ],
)  # fmt: skip
def test_counts_have_three_figures(count: float, expected: str) -> None:
    assert brief(count) == expected


@pytest.mark.parametrize(
    ("seconds", "digits", "expected"),
    [
        (0.04, 1, "0.0 s"), (1.26, 1, "1.3 s"), (15.2, 0, "15 s"), (59.4, 0, "59 s"),
        (59.96, 1, "1 min 0 s"), (59.6, 0, "1 min 0 s"), (286, 0, "4 min 46 s"),
        (3599.7, 0, "1 h 0 min"), (7500, 2, "2 h 5 min"), (360_000, 0, "100 h 0 min"),
    ],
)  # fmt: skip
def test_durations_have_two_units(seconds: float, digits: int, expected: str) -> None:
    assert duration(seconds, digits) == expected
