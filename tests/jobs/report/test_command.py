import subprocess
import sys
from pathlib import Path

import pytest

from exporters.safefile import read_header
from jobs.report.command import destination
from tests.helpers import DATA, ROOT, SMALL, qkvmill, succeed, write_corpus

GENERATOR = '<meta name="generator" content="qkvmill report">'


def test_the_page_stands_beside_the_export_and_is_made_anew(export: Path) -> None:
    page = export.with_name("export.html")
    first = succeed("report", export, "--json").json
    assert first["path"] == str(page)
    assert first["bytes"] == page.stat().st_size
    assert first["windows"] == [0, 16, 33]
    assert first["left_out"] == {}
    text = page.read_text("utf-8")
    assert GENERATOR in text
    assert succeed("report", export, "--quiet").stdout == ""
    assert page.read_text("utf-8") == text
    assert "all as they were written" in succeed("verify", export).stdout


def test_the_current_folder_and_a_path_through_it_have_names(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = export.with_name("export.html")
    for folder, place in ((export, "."), (export / "shards", ".."), (export.parent, "export/")):
        monkeypatch.chdir(folder)
        assert page == destination(Path(place), None).absolute()


def test_an_export_in_a_bucket_has_its_page_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path / "corpus", a="One fish, two fish, red fish.\n" * 40)
    for kind in ("full", "compact"):
        bucket = f"memory://exports/{kind}"
        succeed("run", corpus, "--out", bucket, *SMALL, "--artifact", kind)
        assert succeed("report", bucket, "--json").json["path"] == f"{kind}.html"
        assert GENERATOR in (tmp_path / f"{kind}.html").read_text("utf-8")


@pytest.mark.parametrize("place", ["page.html", "shards/page.html", "../export/page.html"])
def test_nothing_is_written_into_the_export(place: str, export: Path) -> None:
    result = qkvmill("report", export, "--out", export / place)
    assert result.status == 2
    assert "lies in the export" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_link_into_the_export_is_seen_through(export: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(export)
    result = qkvmill("report", export, "--out", tmp_path / "link" / "page.html")
    assert result.status == 2
    assert "lies in the export" in result.stderr


def test_what_is_no_report_is_not_replaced(export: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("mine")
    for there in (other, tmp_path):
        result = qkvmill("report", export, "--out", there)
        assert result.status == 2
        assert "is there already and is no report" in result.stderr
    assert other.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = qkvmill("report", export, "--out", tmp_path / "file" / "page.html")
    assert result.status == 1
    assert f"{tmp_path / 'file' / 'page.html'} could not be written" in result.stderr
    assert "name another place with --out" in result.stderr


def test_a_window_that_is_not_there_is_named(export: Path) -> None:
    result = qkvmill("report", export, "--window", 99_999)
    assert result.status == 1
    assert "--window 99999 is none of them" in result.stderr


def test_no_export_is_an_error(tmp_path: Path) -> None:
    result = qkvmill("report", tmp_path)
    assert result.status == 1
    assert "holds no finished export" in result.stderr


def test_a_damaged_stream_is_an_error(export: Path) -> None:
    part = next((export / "tokens").iterdir())
    data = bytearray(part.read_bytes())
    place = read_header(part).tensors["input_ids"].first_byte
    data[place : place + 4] = (2**31 - 1).to_bytes(4, "little")
    part.write_bytes(data)
    result = qkvmill("report", export)
    assert result.status == 1
    assert "has the token 2147483647, which is beyond any vocabulary" in result.stderr


def test_a_tokenizer_that_is_none_of_tiktokens_is_asked_for(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = DATA / "corpus" / "english" / "bread.txt"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.train_from_iterator(
        [text.read_text("utf-8")],
        tokenizers.trainers.BpeTrainer(
            vocab_size=400, show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    inner.save(str(tmp_path / "tokenizer.json"))
    export = tmp_path / "export"
    succeed("run", text, "--out", export, *SMALL, "--tokenizer", tmp_path / "tokenizer.json",
            "--separator", "none")  # fmt: skip
    result = qkvmill("report", export)
    assert result.status == 1
    assert "give its folder or tokenizer.json as --tokenizer" in result.stderr
    succeed("report", export, "--tokenizer", tmp_path / "tokenizer.json")


@pytest.mark.parametrize("package", ["altair", "jinja2", "vl_convert"])
def test_without_a_package_the_extra_is_named(
    package: str, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("jobs.report.")]:
        if name.rpartition(".")[2] in ("make", "charts", "page"):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(f"jobs.report.{name.rpartition('.')[2]}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    result = qkvmill("report", export)
    assert result.status == 2
    assert result.stderr == (
        f"Error: a report needs the package {package}, which is not installed; install it with "
        "pip install 'qkvmill[report]'\n"
    )
    assert not export.with_name("export.html").exists()


def test_no_other_command_loads_libraries_of_charts() -> None:
    code = (
        "import sys, jobs.commands.cli, jobs.run, jobs.plan, jobs.planmodel, jobs.expand\n"
        "import exporters.sample, exporters.verify, jobs.commands.showexport\n"
        "import jobs.commands.showbench, jobs.endtoend, jobs.report.command\n"
        "sys.exit(bool({'altair', 'vl_convert'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
