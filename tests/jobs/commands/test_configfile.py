"""examples/job.toml against the options themselves; mistakes in such files are in test_cli.py."""

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from jobs.commands.cli import cli
from jobs.commands.configfile import keys
from tests.helpers import ROOT, qkvmill, succeed, write_corpus

TEXT = (ROOT / "examples" / "job.toml").read_text("utf-8")
SET = tomllib.loads(TEXT)
ALL = tomllib.loads(re.sub(r"^# ([a-z0-9-]+ = )", r"\1", TEXT, flags=re.MULTILINE))
NO_DEFAULT = ("corpus", "out")


def option_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values as the command takes them, by key."""
    command = cli.commands["run"]
    context = click.Context(command)
    return {
        key: parameter.type_cast_value(context, values[key])
        for key, parameter in keys(command).items()
        if key in values
    }


def test_the_example_names_every_option_that_a_file_may_give() -> None:
    names = {
        name.removeprefix("--")
        for parameter in cli.commands["run"].params
        for name in parameter.opts
        if len(name) > 2 and parameter.name != "config"
    }
    assert names == ALL.keys()


def test_what_the_example_sets_are_the_defaults() -> None:
    command = cli.commands["run"]
    context = click.Context(command)
    set_values = option_values(SET)
    for key, parameter in keys(command).items():
        default = parameter.get_default(context)
        has_default = default is not None and "UNSET" not in repr(default)
        assert (key in SET) == (has_default or key in NO_DEFAULT), key
        if key in SET and key not in NO_DEFAULT:
            assert parameter.type_cast_value(context, default) == set_values[key], key


def test_what_the_example_leaves_out_has_its_default_told() -> None:
    for line in TEXT.splitlines():
        if re.match(r"# [a-z0-9-]+ = ", line):
            assert "default: " in line, line


def test_the_values_that_the_example_leaves_out_are_valid() -> None:
    assert option_values(ALL).keys() == ALL.keys()


def test_plan_runs_with_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = succeed("plan", "--config", "examples/job.toml", "--json", "--device", "cpu").json
    assert (plan["documents"], plan["windows"]) == (21, 64)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("context_length", "context-length"),
        ("as_json", "json"),
        ("no-save-weights", "save-weights"),
        ("DTYPE", "dtype"),
        ("out-dir", "out"),
        ("shardsize", "shard-size"),
        ("quux", None),
    ],
)
def test_a_key_that_is_none_is_met_with_the_one_that_is_near(
    tmp_path: Path, key: str, meant: str | None
) -> None:
    config = tmp_path / "job.toml"
    config.write_text(f"{key} = 1\n")
    corpus = write_corpus(tmp_path / "corpus", a="text")
    result = qkvmill("plan", corpus, "--out", tmp_path / "out", "--config", config)
    assert result.status == 2
    assert f"{key!r} is not an option of plan" in result.stderr
    if meant is None:
        assert "did you mean" not in result.stderr
    else:
        assert f"; did you mean {meant}?\n" in result.stderr


def test_verbose_and_json_may_stand_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text("json = true\nverbose = true\nexport = ['tokens']\ncontext-length = 4\n")
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish, red fish, blue fish.")
    result = succeed("plan", corpus, "--out", tmp_path / "out", "--config", config)
    assert result.json["documents"] == 1
    assert "jobs.cutting: reading " in result.stderr
