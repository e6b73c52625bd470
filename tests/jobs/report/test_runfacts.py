import json
from pathlib import Path

import pytest

from tests.helpers import succeed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "run.json could not be read (JSONDecodeError)."),
        ("[]", "run.json is no JSON object."),
        ('{"stages": [{"name": 1}]}', "run.json is damaged (TypeError)."),
    ],
)
def test_a_damaged_run_json_is_told_and_stops_nothing(text: str, said: str, export: Path) -> None:
    (export / "run.json").write_text(text)
    assert succeed("report", export, "--json").json["left_out"] == {"run": said}


def test_a_time_that_is_none_is_damage(export: Path) -> None:
    run = json.loads((export / "run.json").read_text())
    run["stages"][0]["seconds"] = float("inf")
    (export / "run.json").write_text(json.dumps(run))
    said = succeed("report", export, "--json").json["left_out"]["run"]
    assert said == "run.json is damaged (ValueError)."
