"""Inputs inside --out, through the command line: refused, and left as they are."""

from pathlib import Path

import pytest

from tests.helpers import SMALL, qkvmill, succeed, write_corpus


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("link", [False, True])
def test_weights_in_the_export_that_is_replaced_are_refused(
    tmp_path: Path, export: Path, command: str, link: bool
) -> None:
    corpus = write_corpus(tmp_path / "texts", a="One fish, two fish. " * 20)
    weights = export / "weights.safetensors"
    if link:
        (tmp_path / "w.safetensors").symlink_to(weights)
        weights = tmp_path / "w.safetensors"
    options = (*SMALL[:4], "--weights", weights, "--overwrite")
    result = qkvmill(command, corpus, "--out", export, *options)
    assert result.status == 2
    assert f"--weights {weights} lies in --out {export}, whose files are replaced" in result.stderr
    succeed("verify", export)


def test_a_corpus_in_the_export_is_refused(tmp_path: Path, export: Path) -> None:
    inside = write_corpus(export / "shards/mine", a="One fish, two fish. " * 20)
    for corpus in (inside, inside / "a.txt", export):
        result = qkvmill("run", corpus, "--out", export, *SMALL, "--overwrite")
        assert result.status == 2
        assert f"the corpus {corpus} lies in --out {export}" in result.stderr
    assert (inside / "a.txt").exists()
