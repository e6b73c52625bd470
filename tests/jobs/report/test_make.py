import json
from pathlib import Path

from jobs.report.make import spread
from tests.helpers import SMALL, succeed, write_corpus


def test_windows_are_spread_from_the_first_to_the_last() -> None:
    assert spread(2, 3) == (0, 1)
    assert spread(259, 3) == (0, 129, 258)
    assert spread(7, 1) == (0,)


def test_what_could_not_be_made_is_told(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish.\n" * 30)
    succeed("run", corpus, "--out", tmp_path / "out", "--export", "tokens", "--context-length", 16)
    (tmp_path / "out" / "run.json").unlink()
    left_out = succeed("report", tmp_path / "out", "--json").json["left_out"]
    assert left_out.keys() == {"positions", "norms", "attention", "run"}
    assert left_out["run"].startswith("There is no run.json")


def test_every_file_and_every_count_of_the_tail_is_on_the_page(tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path / "corpus", **{f"f{i:02}": "One fish. " * (9 + i) for i in range(12)}
    )
    (corpus / "z.txt").write_bytes(b"two \xff fish " * 20)
    succeed("run", corpus, "--out", tmp_path / "out", *SMALL, "--text-errors", "replace",
            "--boundaries", "split", "--tail", "pad")  # fmt: skip
    made = succeed("report", tmp_path / "out", "--json").json
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    page = Path(made["path"]).read_text("utf-8")
    for name in ("padded_windows", "padded_places"):
        shown = f'{name.replace("_", " ")}</th><td class="n">{manifest["windows"][name]:,}</td>'
        assert manifest["windows"][name] > 0
        assert shown in page
    assert 'replaced sequences</th><td class="n">20</td>' in page
    assert "3 more</th>" in page
    assert manifest["tokenizer"]["vocabulary_sha256"] in page
