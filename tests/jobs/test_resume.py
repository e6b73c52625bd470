"""A run that is given again: what it goes on with, what it refuses, and what it leaves alone."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters import journal
from exporters.errors import ExportError
from exporters.journal import JOURNAL
from exporters.layerfile import save_layer
from jobs import encode, pool, stream
from jobs.compute import write_shards
from jobs.shards import make_by_pieces
from tests.helpers import SMALL, Result, qkvmill, random_layer, succeed, write_corpus

JOB = (*SMALL, "--tokenizer", "gpt2", "--shard-size", "20kB", "--batch-size", 1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(
        tmp_path / "corpus",
        a="The five boxing wizards jump quickly. " * 20,
        b="Sphinx of black quartz, judge my vow.\n" * 20,
    )


def unfinished(out: Path, *command: object) -> None:
    """Run a job whose third shard and those after it cannot be written."""

    def fail(*arguments: object) -> object:
        raise ExportError("the disk is gone")

    with pytest.MonkeyPatch.context() as patched:
        real = make_by_pieces.__globals__["write_pieces"]

        def some(root: Path, name: str, *rest: object, **options: object) -> object:
            if name.startswith("shards/") and int(name[13:18]) > 2:
                raise ExportError("the disk is gone")
            return real(root, name, *rest, **options)

        patched.setattr("jobs.shards.write_pieces", some)
        result = qkvmill(*command, "--out", out)
    assert result.status == 1
    assert "the disk is gone" in result.stderr


def state(out: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != ".work"
    }


def sums(out: Path) -> str:
    return (out / "SHA256SUMS").read_text()


def test_what_is_done_is_not_done_again(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, "--method", "tables")
    unfinished(out, *command)
    before = state(out)
    assert sum(name.startswith("shards/") for name in before) == 2
    for place in ("jobs.stream.tokenise", "jobs.parameters.build", "jobs.parameters.save_layer"):
        monkeypatch.setattr(place, None)
    result = succeed(*command, "--out", out)
    assert "holds an unfinished export: going on, 5 files of" in result.stderr
    after = state(out)
    assert all(after[name] == seen for name, seen in before.items())
    monkeypatch.undo()
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")
    assert (out / "manifest.json").read_bytes() == (tmp_path / "new/manifest.json").read_bytes()


OTHERS: dict[str, tuple[tuple[object, ...], str]] = {
    "seed": (("--seed", 1), "options.seed was 0, now 1"),
    "dtype": (("--dtype", "bfloat16"), 'options.dtype was "float32", now "bfloat16"'),
    "layout": (("--layout", "bthd"), 'options.layout was "bhtd", now "bthd"'),
    "shard-size": (("--shard-size", "30kB"), "options.shard_size was 20000, now 30000"),
    "method": (("--method", "tables"), 'options.method was "auto", now "tables"'),
    "tokenizer": (("--tokenizer", "r50k_base"), 'tokenizer.name was "gpt2", now "r50k_base"'),
    "export": (("--export", "qkv"), 'options.export was ["tokens", "qkv"], now ["qkv"]'),
    "separator": (("--separator", "none"), 'options.separator was "eot", now "none"'),
    "context": (("--context-length", 8), "options.context_length was 16, now 8"),
}


@pytest.mark.parametrize(("options", "said"), OTHERS.values(), ids=OTHERS)
def test_another_job_is_refused_with_what_differs_and_nothing_changes(
    tmp_path: Path, corpus: Path, options: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "out"
    unfinished(out, "run", corpus, *JOB)
    before = state(out)
    result = qkvmill("run", corpus, "--out", out, *JOB, *options)
    assert result.status == 1
    assert said in result.stderr
    assert "--overwrite to start over" in result.stderr
    assert state(out) == before
    overwritten = succeed("run", corpus, "--out", out, *JOB, *options, "--overwrite")
    assert "held an unfinished export: starting over" in overwritten.stderr
    succeed("run", corpus, "--out", tmp_path / "new", *JOB, *options)
    assert sums(out) == sums(tmp_path / "new")


def test_another_corpus_or_another_layer_is_refused(tmp_path: Path, corpus: Path) -> None:
    weights = tmp_path / "w.safetensors"

    def give(seed: int) -> None:
        save_layer(tmp_path, weights.name, random_layer(vocabulary_size=50257, seed=seed))

    give(0)
    job = ("--weights", weights, *JOB[:4], *JOB[8:])
    unfinished(tmp_path / "out", "run", corpus, *job)
    give(1)
    other = qkvmill("run", corpus, "--out", tmp_path / "out", *job)
    assert other.status == 1
    assert "(weights_sha256 was " in other.stderr
    give(0)
    write_corpus(corpus, c="one more")
    other = qkvmill("run", corpus, "--out", tmp_path / "out", *job)
    assert 'corpus.files was ["a.txt", "b.txt"], now ["a.txt", "b.txt", "c.txt"]' in other.stderr
    (corpus / "c.txt").unlink()
    succeed("run", corpus, "--out", tmp_path / "out", *job)


def test_a_document_that_changed_after_it_was_tokenised_is_named(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    unfinished(out, "run", corpus, *JOB)
    text = (corpus / "b.txt").read_text()
    (corpus / "b.txt").write_text(text.replace("black", "white"))
    result = qkvmill("run", corpus, "--out", out, *JOB)
    assert result.status == 1
    assert f"{corpus / 'b.txt'} has changed since its tokens were written" in result.stderr
    (corpus / "b.txt").write_text(text)
    succeed("run", corpus, "--out", out, *JOB)


def stopped_while_tokenising(out: Path, parts: int, *command: object) -> None:
    """Run a job that cannot note another part of its token stream than the first ones."""
    real = stream.token_entry

    def some(part: Any) -> object:
        if int(part.file.name[14:19]) > parts:
            raise ExportError("the disk is gone")
        return real(part)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "token_entry", some)
        result = qkvmill(*command, "--out", out)
    assert (result.status, "the disk is gone" in result.stderr) == (1, True)


@pytest.mark.parametrize("change", ["edited", "cut"])
def test_a_document_that_changed_while_it_was_half_tokenised_is_named(
    tmp_path: Path, corpus: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 50)
    out, document = tmp_path / "out", corpus / "a.txt"
    command = ("run", corpus, *JOB)
    stopped_while_tokenising(out, 2, *command)
    (out / "tokens/tokens-00003.safetensors").unlink()
    before, text = state(out), document.read_text()
    document.write_text(text.replace("boxing", "wrestling") if change == "edited" else text[:80])
    result = qkvmill(*command, "--out", out)
    assert result.status == 1
    assert f"{document} has changed since its tokens were written" in result.stderr
    assert state(out) == before
    over = succeed(*command, "--out", out, "--overwrite")
    assert f"{document} has changed since its tokens were written: starting over" in over.stderr
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")


def test_text_that_moved_into_the_next_document_is_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 6)
    corpus = write_corpus(tmp_path / "c", a=" one two three four five six seven eight", b=" nine")
    command = ("run", corpus, "--tokenizer", "gpt2", "--context-length", 2, "--export", "tokens",
               "--separator", "none")  # fmt: skip
    stopped_while_tokenising(tmp_path / "out", 1, *command)
    write_corpus(corpus, a=" one two three", b=" four five six seven eight nine")
    result = qkvmill(*command, "--out", tmp_path / "out")
    assert result.status == 1
    assert f"{corpus / 'a.txt'} has changed since" in result.stderr


def test_a_document_that_changed_is_named_though_its_tokens_were_lost_too(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 50)
    out = tmp_path / "out"
    command = ("run", corpus, *JOB)
    unfinished(out, *command)
    (out / "tokens/tokens-00001.safetensors").unlink()
    text = (corpus / "b.txt").read_text()
    (corpus / "b.txt").write_text(text.replace("black", "white"))
    result = qkvmill(*command, "--out", out)
    assert result.status == 1
    assert f"{corpus / 'b.txt'} has changed since" in result.stderr
    (corpus / "b.txt").write_text(text)
    succeed(*command, "--out", out)
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")


def test_parts_of_a_longer_document_whose_first_part_was_lost_do_not_stay(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 50)
    out = tmp_path / "out"
    command = ("run", corpus / "a.txt", *JOB)
    stopped_while_tokenising(out, 2, *command)
    (out / "tokens/tokens-00001.safetensors").unlink()
    (corpus / "a.txt").write_text("Pack my box with five dozen liquor jugs. " * 3)
    succeed(*command, "--out", out)
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")
    succeed("verify", out)


def test_overwrite_starts_over_where_the_corpus_has_changed(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, "--method", "tables")
    unfinished(out, *command)
    (corpus / "b.txt").write_text("Pack my box with five dozen liquor jugs. " * 20)
    result = succeed(*command, "--out", out, "--overwrite")
    assert f"{corpus / 'b.txt'} has changed since its tokens were written: starting over" in (
        result.stderr
    )
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")


def test_the_export_may_lie_in_the_folder_of_the_corpus(tmp_path: Path, corpus: Path) -> None:
    out = corpus / "out"
    command = ("run", corpus, *JOB)
    unfinished(out, *command)
    (corpus / "notes.rst").write_text("not read")
    again = succeed(*command, "--out", out)
    assert "holds an unfinished export: going on" in again.stderr
    assert "finished: nothing is done" in succeed(*command, "--out", out).stderr
    succeed(*command, "--out", tmp_path / "new", "--quiet")
    shutil.rmtree(out)
    succeed(*command, "--out", tmp_path / "newer", "--quiet")
    assert sums(tmp_path / "new") != sums(tmp_path / "newer")


def test_a_document_that_could_not_be_read_is_mended_and_the_job_goes_on(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 50)
    out = tmp_path / "out"
    (corpus / "c.txt").write_bytes(b"half a \xff")
    result = qkvmill("run", corpus, "--out", out, *JOB)
    assert result.status == 1
    assert "c.txt is not UTF-8" in result.stderr
    (corpus / "c.txt").write_text("all of it")
    encoded: list[str] = []
    real = encode.encode_segment

    def encode_segment(segment: Any, *arguments: Any) -> object:
        encoded.append(segment.data.decode())
        return real(segment, *arguments)

    monkeypatch.setattr(pool, "encode_segment", encode_segment)
    succeed("run", corpus, "--out", out, *JOB)
    assert encoded == [(corpus / name).read_text() for name in ("b.txt", "c.txt")]
    succeed("run", corpus, "--out", tmp_path / "new", *JOB)
    assert sums(out) == sums(tmp_path / "new")


@pytest.mark.parametrize("part_tokens", [1, 7, 50, 60, 10_000])
@pytest.mark.parametrize("separator", ["eot", "none"])
def test_the_stream_goes_on_after_any_part(
    tmp_path: Path, part_tokens: int, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", part_tokens)
    corpus = write_corpus(tmp_path / "c", a="one two", b="three", c="four five six", d="seven")
    command = ("run", corpus, "--tokenizer", "gpt2", "--context-length", 2, "--export", "tokens",
               "--separator", separator)  # fmt: skip
    succeed(*command, "--out", tmp_path / "new")
    parts = len(list((tmp_path / "new/tokens").iterdir()))
    real = stream.token_entry

    for last in range(parts):
        out = tmp_path / f"out-{last}"

        def some(part: object, last: int = last) -> object:
            if part.file.name == f"tokens/tokens-{last + 1:05d}.safetensors":  # type: ignore[attr-defined]
                raise ExportError("the disk is gone")
            return real(part)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(stream, "token_entry", some)
            assert qkvmill(*command, "--out", out).status == 1
        assert out.exists() == (last > 0)
        again = succeed(*command, "--out", out)
        assert "starting over" not in again.stderr
        assert sums(out) == sums(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("shards/shard-00001", "shards"), ("tokens/tokens-00001", "tokens"), ("weights", ""),
     (".work/tables", "")],
)  # fmt: skip
def test_what_was_damaged_meanwhile_is_made_again(
    tmp_path: Path, corpus: Path, name: str, kind: str
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, "--method", "tables")
    unfinished(out, *command)
    path = next(path for path in out.rglob("*.safetensors") if name in str(path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = succeed(*command, "--out", out)
    assert f"{path} is not as it was written: it is made again" in result.stderr
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")


def test_the_same_command_on_a_finished_export_does_nothing_and_succeeds(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    first = succeed("run", corpus, "--out", out, *JOB, "--json").json
    before = state(out)
    result = succeed("run", corpus, "--out", out, *JOB)
    assert f"{out} holds this very export already, finished: nothing is done" in result.stderr
    assert state(out) == before
    again = succeed("run", corpus, "--out", out, *JOB, "--json").json
    assert {**again, "seconds": 0, "stages": 0} == {**first, "seconds": 0, "stages": 0}


def test_another_command_on_a_finished_export_is_refused_with_what_differs(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *JOB)
    before = state(out)
    other = qkvmill("run", corpus, "--out", out, *JOB, "--seed", 1)
    assert other.status == 1
    assert "holds a finished export of other options or inputs (options.seed was 0, now 1)" in (
        other.stderr
    )
    (corpus / "a.txt").write_text("The five boxing wizards jump quietly. " * 20)
    other = qkvmill("run", corpus, "--out", out, *JOB)
    assert f"({corpus / 'a.txt'} has other bytes); give another folder" in other.stderr
    assert state(out) == before


@pytest.mark.parametrize("given", [b"", b"other words" * 9])
def test_a_finished_export_of_standard_input_takes_nothing_but_not_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bytes
) -> None:
    command = ("run", "-", "--out", tmp_path / "out", "--context-length", 4, "--export", "tokens")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"One fish, two fish.\n" * 9)))
    succeed(*command)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    again = qkvmill(*command)
    said = "(standard input has other bytes); give another folder"
    if not given:
        said = "nothing comes from standard input: it is not compared"
    assert (again.status, said in again.stderr) == (1 if given else 0, True)


def test_a_finished_export_that_lost_a_file_is_not_called_done(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *JOB)
    next((out / "shards").iterdir()).unlink()
    result = qkvmill("run", corpus, "--out", out, *JOB)
    assert result.status == 1
    assert "is missing or not whole" in result.stderr
    succeed("run", corpus, "--out", out, *JOB, "--overwrite")
    succeed("verify", out)


def test_a_run_that_was_stopped_after_its_commit_is_checked_as_any_finished_one(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise ExportError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr("exporters.folder.release", stop)
        assert qkvmill("run", corpus, "--out", out, *JOB).status == 1
    assert (out / ".work/journal").exists()
    text = (corpus / "a.txt").read_text()
    (corpus / "a.txt").write_text("The five boxing wizards jump quietly. " * 20)
    other = qkvmill("run", corpus, "--out", out, *JOB)
    assert (other.status, "a.txt has other bytes" in other.stderr) == (1, True)
    (corpus / "a.txt").write_text(text)
    shard = next((out / "shards").iterdir())
    shard.rename(tmp_path / "shard")
    lost = qkvmill("run", corpus, "--out", out, *JOB)
    assert (lost.status, "is missing or not whole" in lost.stderr) == (1, True)
    (tmp_path / "shard").rename(shard)
    result = succeed("run", corpus, "--out", out, *JOB)
    assert "finished: nothing is done" in result.stderr
    assert "qkvmill verify checks their bytes" in result.stderr
    assert not (out / ".work").exists()
    succeed("run", corpus, "--out", out, *JOB, "--overwrite")
    succeed("verify", out)


@pytest.mark.parametrize("change", ["removed", "cut", "linked"])
def test_a_finished_shard_that_changes_meanwhile_is_not_committed(
    tmp_path: Path, corpus: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB)

    def spoiled(*arguments: Any) -> object:
        entries = write_shards(*arguments)
        path = out / entries[1].name
        data = path.read_bytes()
        path.unlink()
        if change == "cut":
            path.write_bytes(data[:-1])
        elif change == "linked":
            (tmp_path / "shard").write_bytes(data)
            path.symlink_to(tmp_path / "shard")
        return entries

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.write_shards", spoiled)
        result = qkvmill(*command, "--out", out)
    assert result.status == 1
    assert "was removed or changed after it was written; give the same command" in result.stderr
    assert not (out / "manifest.json").exists()
    succeed(*command, "--out", out)
    succeed(*command, "--out", tmp_path / "new")
    assert sums(out) == sums(tmp_path / "new")
    succeed("verify", out)


def test_a_manifest_beside_files_that_are_not_there_takes_nothing_of_an_unfinished_export(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB)
    unfinished(out, *command)
    succeed(*command, "--out", tmp_path / "new")
    shutil.copy(tmp_path / "new/manifest.json", out)
    result = qkvmill(*command, "--out", out)
    assert (result.status, "is missing or not whole" in result.stderr) == (1, True)
    (out / "manifest.json").unlink()
    assert "going on" in succeed(*command, "--out", out).stderr
    assert sums(out) == sums(tmp_path / "new")


Line = dict[str, Any]


def of(kind: str, /, **change: Any) -> Callable[[Line], object]:
    """Changes the entries of a kind in a journal."""
    return lambda line: (
        line["file"].update(change) if line.get("file", {}).get("kind") == kind else None
    )


def details(value: Any) -> Callable[[Line], object]:
    return lambda line: line.update(details=value) if line.get("details") else None


def record(**change: Any) -> Callable[[Line], object]:
    """Changes a document's record in the details of tokens."""
    return lambda line: (
        line["details"]["files"][0].update(change)
        if (line.get("details") or {}).get("files")
        else None
    )


def place(**change: Any) -> Callable[[Line], object]:
    """Changes how far the next document is, in the details of tokens."""
    return lambda line: line["details"].update(change) if line.get("details") else None


def note(name: str, value: Any) -> Callable[[Line], object]:
    return lambda line: line.update(value=value) if line.get("note") == name else None


WRONG_LINES: list[Callable[[Line], object]] = [
    details(None), details([]), details([1]), details([{}]), details({"a": 1}),
    record(name="b.txt"), record(tokens=1), record(tokens="1"), record(bytes=3),
    record(sha256=None), record(documents=2), record(separators=-1), place(files=None),
    place(segments=-1), place(segments="1"), place(digest=1), place(separated=1), place(listed=[1]),
    place(counts={}), place(counts=None),
    of("tokens", tensors={}), of("tokens", kind="windows"), of("tokens", count=1),
    of("tokens", first=7), of("tokens", name="tokens/other.safetensors"),
    of("windows", name=5), of("windows", count=1), of("windows", first=2),
    of("windows", kind="tokens"), of("windows", tensors={}), of("windows", bytes=0),
    of("weights", kind="tokens"), of("weights", kind="x"), of("weights", first=1),
    of("tables", count=3), of("tables", tensors={}),
    note("method", {}), note("method", [1]), note("method", {"name": "x", "reason": ""}),
    note("tokens", {}), note("tokens", [1]), note("tokens", {"parts": 1, "files": None}),
    note("tokens", {"parts": 1, "files": [], "segments": 0, "digest": "", "counts": {},
                    "separated": True, "listed": []}),
    note("tokens", {"parts": "1", "files": []}),
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG_LINES)
def test_a_journal_whose_lines_are_whole_but_wrong_is_not_believed(
    tmp_path: Path, corpus: Path, change: Callable[[Line], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 150)
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, "--method", "tables", "--vocab-size", "corpus")
    unfinished(out, *command)
    data = (out / JOURNAL).read_bytes()
    lines = [json.loads(raw.partition(b" ")[2]) for raw in data.splitlines()]
    for line in lines:
        change(line)
    (out / JOURNAL).write_bytes(b"".join(map(journal.line_of, lines)))
    assert (out / JOURNAL).read_bytes() != data
    result = succeed(*command, "--out", out)
    assert "starting over" in result.stderr or "it is made again" in result.stderr
    succeed(*command, "--out", tmp_path / "new")
    assert (out / "manifest.json").read_bytes() == (tmp_path / "new/manifest.json").read_bytes()
    assert sums(out) == sums(tmp_path / "new")


def test_notes_without_a_finished_file_are_checked_too(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    unfinished(out, "run", corpus, *JOB)
    first = (out / JOURNAL).read_bytes().splitlines(keepends=True)[0]
    (out / JOURNAL).write_bytes(first + journal.line_of({"note": "tokens", "value": {}}))
    assert "starting over" in succeed("run", corpus, *JOB, "--out", out).stderr


def test_a_finished_export_beside_an_unreadable_journal_is_finished(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *JOB)
    (out / ".work").mkdir()
    (out / ".work/journal").write_text("x")
    assert "nothing is done" in succeed("run", corpus, "--out", out, *JOB).stderr
    assert not (out / ".work").exists()


def test_an_overwrite_that_fails_before_anything_is_done_leaves_nothing(
    tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "deep/er/out"
    succeed("run", corpus, "--out", out, *JOB)
    (corpus / "c.txt").write_bytes(b"half a \xff")
    assert qkvmill("run", corpus, "--out", out, *JOB, "--overwrite").status == 1
    assert os.listdir(tmp_path / "deep/er") == []
    shutil.rmtree(tmp_path / "deep")
    assert qkvmill("run", corpus, "--out", out, *JOB).status == 1
    assert not (tmp_path / "deep").exists()


def test_a_context_that_the_corpus_cannot_fill_leaves_nothing(tmp_path: Path, corpus: Path) -> None:
    result = qkvmill("run", corpus, "--out", tmp_path / "out", *SMALL[:2], *JOB[4:],
                     "--context-length", 9999)  # fmt: skip
    assert result.status == 1
    assert not (tmp_path / "out").exists()


def test_the_method_of_the_first_run_is_kept(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", corpus, *JOB, "--vocab-size", "corpus")
    unfinished(out, *command)
    monkeypatch.setattr("jobs.run.decide", None)  # a machine that would decide otherwise
    succeed(*command, "--out", out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with some options, again with others; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}{options}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def say(result: Result, reason: str) -> None:
    assert result.status == 1
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_a_disk_that_is_too_small_is_found_before_the_work(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="How vexingly quick daft zebras jump! " * 3000)
    out = small_disk("size=16m") / "out"
    result = qkvmill("run", corpus, "--out", out, *SMALL, "--quiet")
    say(result, f"--out {out} needs")
    assert not out.exists()


@pytest.mark.parametrize("method", ["tables", "direct"])
def test_a_disk_that_fills_up_is_named_and_after_space_is_made_the_job_goes_on(
    small_disk: Callable[[str], Path],
    tmp_path: Path,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="How vexingly quick daft zebras jump! " * 5000)
    disk = small_disk("size=16m")
    command = ("run", corpus, *SMALL, "--method", method, "--vocab-size", "corpus", "--shard-size",
               "1MB")  # fmt: skip
    with monkeypatch.context() as patched:
        for place in ("jobs.run.check_space", "jobs.room.check_space"):
            patched.setattr(place, lambda *_: None)  # someone else fills the disk
        result = qkvmill(*command, "--out", disk / "out", "--quiet")
    say(result, "could not be written: No space left on device; what is finished is kept")
    assert f"{disk}/out/shards/" in result.stderr
    small_disk("size=64m")
    result = succeed(*command, "--out", disk / "out")
    assert "holds an unfinished export: going on" in result.stderr
    succeed(*command, "--out", tmp_path / "new")
    assert sums(disk / "out") == sums(tmp_path / "new")


def test_a_disk_that_turned_read_only_is_named_and_later_the_job_goes_on(
    small_disk: Callable[[str], Path], tmp_path: Path, corpus: Path
) -> None:
    out = small_disk("size=64m") / "out"
    command = ("run", corpus, *JOB, "--vocab-size", "corpus")
    unfinished(out, *command)
    small_disk("ro")
    say(qkvmill(*command, "--out", out, "--quiet"), f"{out}/.work/lock could not be written")
    say(qkvmill(*command, "--out", out.parent / "new", "--quiet"), "Read-only file system")
    small_disk("rw")
    succeed(*command, "--out", out)
    assert sorted(os.listdir(out)) == [
        "SHA256SUMS", "manifest.json", "run.json", "shards", "tokens", "weights.safetensors",
    ]  # fmt: skip
