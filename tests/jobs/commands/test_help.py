"""Help, completion and suggestions: what the command line says of itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import save_file

from jobs.commands.cli import cli
from jobs.commands.main import main
from tests.helpers import ROOT, qkvmill, random_layer, write_corpus

OPTIONS = [
    pytest.param(command, option, id=f"{name}-{option.name}")
    for name, command in cli.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_has_help_and_shows_its_default(
    command: click.Command, option: click.Option
) -> None:
    assert option.help
    assert option.help.endswith(".")
    if not (option.required or option.is_flag or option.is_eager):
        extra = option.get_help_extra(click.Context(command))
        assert extra.get("default"), f"--{option.name} shows no default"


def examples(command: click.Command) -> Iterator[list[str]]:
    epilog = command.epilog or ""
    for line in epilog.splitlines():
        if line.startswith("  qkvmill "):
            yield shlex.split(line)[1:]


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_every_command_has_help_and_examples_that_it_takes(name: str) -> None:
    command = cli.commands[name] if name else cli
    assert command.help
    found = list(examples(command))
    assert found
    for words in found:
        assert words[0] == name or not name
        cli.commands[words[0]].make_context(words[0], words[1:])


def test_help_shows_the_examples_a_line_each() -> None:
    text = qkvmill("inspect", "--help").stdout
    assert "  Examples:\n    qkvmill inspect out/first\n    qkvmill inspect out/first --w" in text


@pytest.mark.parametrize(
    ("shell", "words", "word", "answers"),
    [
        ("bash", "qkvmill run --dty", "2", ["plain,--dtype"]),
        ("zsh", "qkvmill run --layout b", "3", ["plain", "bhtd", "_", "plain", "bthd", "_"]),
        ("fish", "qkvmill run --out out --seed", "--see", ["plain,--seed\tSeed of the"]),
        ("bash", "qkvmill run --tokenizer o2", "3", ["plain,o200k_base", "plain,o200k_harmony"]),
        ("bash", "qkvmill run --tokenizer models/", "3", ["file,models/"]),
    ],
    ids=["bash", "zsh", "fish", "tokenizers", "folders-of-tokenizers"],
)
def test_shells_are_given_options_and_choices(
    shell: str, words: str, word: str, answers: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = {"_QKVMILL_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": word}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    found = capsys.readouterr().out.splitlines()
    assert len(answers) == len(found)
    assert all(line.startswith(answer) for line, answer in zip(found, answers, strict=True))


def test_the_program_itself_answers_a_shell() -> None:
    asked = {"_QKVMILL_COMPLETE": "bash_complete", "COMP_WORDS": "qkvmill ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs"], env={**os.environ, "PYTHONPATH": str(ROOT), **asked},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("plain,verify\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_takes(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_QKVMILL_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"_QKVMILL_COMPLETE={shell}_complete" in text
    if (program := shutil.which(shell)) is not None:
        (tmp_path / "script").write_text(text)
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


def corpus(folder: Path) -> Path:
    return write_corpus(folder / "corpus", a="Enough text for a window of four tokens.")


NEAR: list[tuple[str, list[str], str]] = [
    ("command", ["isnpect"], "'inspect'"),
    ("option", ["run", "CORPUS", "--context-lenght", "4"], "'--context-length'"),
    ("dtype", ["run", "CORPUS", "--dtype", "bf16"], "bfloat16?"),
    ("dtype-case", ["run", "CORPUS", "--dtype", "Float32"], "float32?"),
    ("positions", ["run", "CORPUS", "--positions", "sinus"], "sinusoidal?"),
    ("format", ["run", "CORPUS", "--format", "json-lines"], "jsonl?"),
    ("export", ["run", "CORPUS", "--export", "feature"], "features?"),
    ("vocabulary", ["run", "CORPUS", "--vocab-size", "encodings"], "encoding?"),
    ("bench-dtype", ["bench", "--dtype", "bf16"], "bfloat16?"),
    ("tokenizer", ["run", "CORPUS", "--tokenizer", "cl100k"], "cl100k_base?"),
    ("tokenizer-case", ["run", "CORPUS", "--tokenizer", "O200K_BASE"], "o200k_base?"),
    ("tokenizer-model", ["run", "CORPUS", "--tokenizer", "gpt-4o"], "o200k_base?"),
]


@pytest.mark.parametrize(("words", "meant"), [pytest.param(*case[1:], id=case[0]) for case in NEAR])
def test_what_is_near_is_suggested(tmp_path: Path, words: list[str], meant: str) -> None:
    given = [str(corpus(tmp_path)) if word == "CORPUS" else word for word in words]
    if words[0] == "run":
        given += ["--out", str(tmp_path / "out")]
    result = qkvmill(*given)
    assert result.status == 2
    (line,) = result.stderr.splitlines()
    assert re.search(rf"[dD]id you mean '?{re.escape(meant.strip(chr(39)))}", line), line


def test_what_is_near_nothing_is_met_with_all_there_is(tmp_path: Path) -> None:
    result = qkvmill("run", corpus(tmp_path), "--out", tmp_path / "out", "--tokenizer", "zzz")
    assert "choose one of gpt2, r50k_base" in result.stderr
    assert "did you mean" not in result.stderr


@pytest.mark.parametrize(
    ("renamed", "scalars", "said"),
    [
        pytest.param({}, {"head": 4}, "says head = 4, but is to say nothing but heads", id="key"),
        pytest.param({}, {"kv_head": 4}, "; did you mean kv_heads?", id="near-key"),
        pytest.param({}, {"norm": "rms-norm"}, "; did you mean rmsnorm?", id="value"),
        pytest.param({"k_proj.weight": "k_porj.weight"}, {},
                     "lacks the tensor k_proj.weight; is it the one named 'k_porj.weight'?",
                     id="lacking"),
        pytest.param({"q_proj.bias": "q_proj.biases"}, {}, "; did you mean q_proj.bias?",
                     id="unknown"),
    ],
)  # fmt: skip
def test_names_in_a_file_of_weights_that_are_near_are_suggested(
    tmp_path: Path, renamed: dict[str, str], scalars: dict[str, Any], said: str
) -> None:
    layer = random_layer(vocabulary_size=101).named_tensors()
    tensors = {renamed.get(name, name): tensor.clone() for name, tensor in layer.items()}
    metadata = {"qkvmill": json.dumps({"heads": 4, **scalars})}
    save_file(tensors, tmp_path / "w.safetensors", metadata=metadata)
    given = ("--out", tmp_path / "out", "--weights", tmp_path / "w.safetensors")
    result = qkvmill("plan", corpus(tmp_path), *given, "--context-length", 4)
    assert result.status == 1
    assert said in result.stderr
