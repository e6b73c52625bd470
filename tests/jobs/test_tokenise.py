import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporters.errors import ExportError
from jobs import cutting, pool, stream, tokenise
from jobs.encode import encode_segment
from jobs.engine import HERE
from jobs.inputs.read import Reader
from jobs.pace import Stage
from tests.formats import (
    COMPRESSORS,
    NASTY,
    RECORDS,
    encoding,
    joined,
    jsonl,
    parquet_of,
    table,
    tokenizer,
)
from tests.helpers import Result, qkvmill, succeed, write_corpus

EOT = encoding("gpt2").eot_token
JOB = ("--tokenizer", "gpt2", "--context-length", 2, "--export", "tokens", "--workers", 1,
       "--quiet")  # fmt: skip
TEXTS = tuple(text for text in NASTY if text)
"""Documents that may be files of their own."""


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.choose_tokenizer.load_encoding", tokenizer)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments, tasks and parts, so that little text has many of them."""
    monkeypatch.setattr(tokenise, "Reader", partial(Reader, block=64))
    monkeypatch.setattr(cutting, "TASK_BYTES", 100)
    monkeypatch.setattr(stream, "PART_TOKENS", 100)


def run(out: Path, *options: object) -> Path:
    succeed("run", *JOB, *options, "--out", out)
    return out


def tokens(out: Path) -> tuple[list[int], list[int]]:
    """The stream of an export and where documents begin in it."""
    ids: list[int] = []
    starts: list[int] = []
    for path in sorted((out / "tokens").iterdir()):
        part = load_file(path)
        ids += part["input_ids"].tolist()
        starts += part["document_starts"].tolist()
    return ids, starts


def parts(out: Path) -> dict[str, str]:
    """The hash of each file of the stream."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "tokens").iterdir())
    }


def corpus_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())["corpus"]
    return found


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("small")
def test_formats_and_compressions_of_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    files = {f"{number}": text for number, text in enumerate(TEXTS)}
    expected = parts(run(tmp_path / "texts", write_corpus(tmp_path / "corpus", **files)))
    assert len(expected) > 1
    assert joined("gpt2", TEXTS) == tokens(tmp_path / "texts")[0]
    for kind, as_records in RECORDS.items():
        for suffix, compress in COMPRESSORS.items():
            path = write(tmp_path / f"a.{kind}{suffix}", compress(as_records(TEXTS)))
            assert expected == parts(run(tmp_path / f"{kind}{suffix}", path)), path.name


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    documents = [f"{number} {text}" for number in range(200) for text in TEXTS]
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "a.jsonl", jsonl(documents))
    write(folder / "b.csv.zst", COMPRESSORS[".zst"](table(documents)))
    write(folder / "c.parquet", parquet_of({"text": documents}, 100))
    write(folder / "d.txt", "\n".join(documents).encode())
    found = [
        parts(run(tmp_path / f"out-{workers}", folder, "--workers", workers))
        for workers in (1, 2, 5)
    ]
    assert found[0] == found[1] == found[2]
    whole = joined("gpt2", [*documents * 3, "\n".join(documents)])
    assert whole == tokens(tmp_path / "out-1")[0]


def test_workers_that_are_asked_for_work_though_the_corpus_is_tiny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = pool.encoder

    def encoder(workers: int, *rest: Any) -> Any:
        asked.append(workers)
        return real(workers, *rest)

    monkeypatch.setattr("jobs.engine.HERE", replace(HERE, encoder=encoder))
    path = write(tmp_path / "a.txt", b"one two three")
    with monkeypatch.context() as patched:
        patched.setattr("jobs.pool.encode_segment", None)  # of this process
        run(tmp_path / "three", path, "--workers", 3)
    run(tmp_path / "one", path)
    assert asked == [3, 1]
    assert parts(tmp_path / "three") == parts(tmp_path / "one")


BAD: dict[str, tuple[bytes, list[str], list[str]]] = {
    "a.jsonl": (b'{"text": "a b"}\nbad\n{"text": 1}\n{"text": "c d"}\n{"text": "cut',
                ["line 2", "line 3", "line 5"], ["a b", "c d"]),
    "b.csv": (b'id,text\n1,a b\n2\n3,c d\n4,"open\n', ["line 3", "line 5"], ["a b", "c d"]),
    "c.tsv": (b"id\ttext\n1\ta b\n2\tx\ty\n3\tc d\n", ["line 3"], ["a b", "c d"]),
    "d.parquet": (parquet_of({"text": ["a b", None, "c d"]}), ["row 2"], ["a b", "c d"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "places", "good"), [(name, *of) for name, of in BAD.items()], ids=BAD
)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small")
def test_bad_records_end_the_job_or_are_counted_and_listed(
    tmp_path: Path, name: str, data: bytes, places: list[str], good: list[str], workers: int
) -> None:
    path = write(tmp_path / name, data)
    options = (*JOB, "--workers", workers)
    failed = qkvmill("run", path, "--out", tmp_path / "out", *options)
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"Error: {path}: {places[0]} ")
    assert failed.stderr.endswith("; mend it, or give --bad-records skip\n")
    assert failed.stderr.count("\n") == 1
    run(tmp_path / "out", path, "--bad-records", "skip", "--workers", workers)
    corpus = corpus_of(tmp_path / "out")
    assert len(places) == corpus["bad_records"]
    assert [(name, place) for place in places] == [
        (bad["file"], bad["place"]) for bad in corpus["listed"]
    ]
    assert all(bad["reason"] for bad in corpus["listed"])
    assert joined("gpt2", good) == tokens(tmp_path / "out")[0]


@pytest.mark.usefixtures("small")
def test_documents_in_are_documents_out_and_bad_records(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [jsonl([f"text {number}"]) if number % 3 else b"bad\n" for number in range(60)]
    write(folder / "a.jsonl", b"".join(lines))
    write(folder / "b.csv", b"text,id\n" + b"one,1\ntwo\n" * 20)
    write(folder / "c.parquet", parquet_of({"text": ["x", None, None, "y"] * 5}))
    out = run(tmp_path / "out", folder, "--bad-records", "skip")
    corpus = corpus_of(out)
    counted = {file["name"]: (file["documents"], file["bad_records"]) for file in corpus["files"]}
    assert counted == {"a.jsonl": (40, 20), "b.csv": (20, 20), "c.parquet": (10, 10)}
    assert corpus["bad_records"] == 50
    assert [f"line {number}" for number in range(1, 30, 3)] == [
        bad["place"] for bad in corpus["listed"]
    ]
    good = [*(f"text {n}" for n in range(60) if n % 3), *["one"] * 20, *["x", "y"] * 5]
    ids, starts = tokens(out)
    assert joined("gpt2", good) == ids
    assert len(good) == len(starts)


def test_bad_records_beyond_the_limit_of_bytes_are_counted(tmp_path: Path) -> None:
    lines = [b'{"text": "%s"}' % (b"a " * size) for size in (9, 60, 60, 9, 60)]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    options = ("--max-record-bytes", 100, "--bad-records", "skip")
    corpus = corpus_of(run(tmp_path / "out", path, *options))
    assert [bad["place"] for bad in corpus["listed"]] == ["line 2", "line 3", "line 5"]


@pytest.mark.usefixtures("small")
def test_an_exported_stream_is_a_corpus_that_gives_the_same_stream(tmp_path: Path) -> None:
    documents = ["", *NASTY, "word " * 200, "", "x " * 24, ""]
    first = run(tmp_path / "first", write(tmp_path / "a.jsonl", jsonl(documents)))
    again = run(tmp_path / "again", first / "tokens")
    assert tokens(first) == tokens(again)
    assert parts(first) == parts(again)
    assert len(documents) == len(tokens(again)[1])
    for number in (2, 3):
        part = first / f"tokens/tokens-{number:05d}.safetensors"
        alone = qkvmill("run", part, "--out", tmp_path / "alone", *JOB)
        assert alone.status == 1
        assert f"Error: {part} goes on with a stream whose earlier files are not" in alone.stderr


@pytest.mark.parametrize("count", range(97, 101))
def test_a_stream_that_ends_with_documents_of_nothing_is_read_whole(
    tmp_path: Path, small: None, count: int
) -> None:
    documents = ["word" + " word" * (count - 1), "", ""]
    first = run(tmp_path / "first", write(tmp_path / "a.jsonl", jsonl(documents)))
    again = run(tmp_path / "again", first / "tokens")
    assert (tokens(first), parts(first)) == (tokens(again), parts(again))
    after = run(tmp_path / "after", first / "tokens", write(tmp_path / "b.txt", b"end"))
    assert joined("gpt2", [*documents, "end"]) == tokens(after)[0]


@pytest.mark.usefixtures("small")
def test_token_files_and_text_files_are_one_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    np.array([1, 2, EOT, 3, EOT], np.uint16).tofile(folder / "a.bin")
    write(folder / "b.txt", b"one")
    np.save(folder / "c.npy", np.array([4, 5], np.int64))
    np.save(folder / "d.npy", np.array([6, EOT], ">u2"))
    write(folder / "e.txt", b"two")
    ids, starts = tokens(run(tmp_path / "out", folder))
    one, two = encoding("gpt2").encode_ordinary("one"), encoding("gpt2").encode_ordinary("two")
    assert [1, 2, EOT, 3, EOT, *one, EOT, 4, 5, EOT, 6, EOT, *two] == ids
    assert starts == [0, 3, 5, 7, 10, 12]
    corpus = corpus_of(tmp_path / "out")
    assert [file["documents"] for file in corpus["files"]] == [2, 1, 1, 1, 1]
    assert [file["separators"] for file in corpus["files"]] == [0, 0, 1, 1, 0]


def test_many_files_of_ids_are_documents_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        np.save(folder / f"{number}.npy", np.array([number, 9], np.uint16))
    ids, starts = tokens(run(tmp_path / "out", folder))
    assert ids == [0, 9, EOT, 1, 9, EOT, 2, 9, EOT, 3, 9, EOT, 4, 9]
    assert starts == [0, 3, 6, 9, 12]


def kinds(folder: Path) -> dict[str, Path]:
    documents = [f"{number} {text}" for number in range(5) for text in TEXTS]
    return {
        "jsonl": write(folder / "a.jsonl", jsonl(documents)),
        "gz": write(folder / "a.jsonl.gz", COMPRESSORS[".gz"](jsonl(documents))),
        "csv": write(folder / "a.csv", table(documents)),
        "parquet": write(folder / "a.parquet", parquet_of({"text": documents})),
        "txt": write(folder / "a.txt", "\n".join(documents).encode()),
    }


def killed_after(part: int, out: Path, path: Path) -> Result:
    """A run that cannot note another part of its stream than the first ones."""
    real = stream.token_entry

    def some(of: Any) -> object:
        if int(of.file.name[14:19]) > part:
            raise ExportError("the disk is gone")
        return real(of)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "token_entry", some)
        return qkvmill("run", path, "--out", out, *JOB)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Counts which segments are encoded."""
    seen: Counter[bytes] = Counter()

    def count(segment: Any, *rest: Any) -> Any:
        seen[bytes(segment.data)] += 1
        return encode_segment(segment, *rest)

    monkeypatch.setattr("jobs.pool.encode_segment", count)
    return seen


@pytest.mark.parametrize("kind", ["jsonl", "gz", "csv", "parquet", "txt"])
def test_a_run_goes_on_within_a_file(
    tmp_path: Path, small: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kinds(tmp_path)[kind]
    seen = counted(monkeypatch)
    expected = parts(run(tmp_path / "new", path))
    assert len(expected) > 8
    segments = seen.total()
    for part in (1, len(expected) // 2):
        out = tmp_path / f"out-{part}"
        assert killed_after(part, out, path).status == 1
        seen.clear()
        run(out, path)
        assert expected == parts(out)
        share = part / len(expected)
        assert segments * (1 - share) - 4 <= seen.total() <= segments * (1 - share) + 4


@pytest.mark.usefixtures("small")
def test_what_is_skipped_of_a_file_is_told_piece_by_piece_and_may_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = kinds(tmp_path)["jsonl"], tmp_path / "out"
    assert killed_after(4, out, path).status == 1
    skipped: list[int] = []
    stages: set[Stage] = set()
    real = Stage.skip

    def skip(stage: Stage, amount: int) -> None:
        if stage.name == "tokenise":
            skipped.append(amount)
            stages.add(stage)
        real(stage, amount)

    monkeypatch.setattr(Stage, "skip", skip)
    run(out, path)
    assert len(skipped) > 4
    assert [path.stat().st_size] == [stage.kept + stage.amount for stage in stages]


def edited(path: Path, old: bytes, new: bytes, at: int) -> None:
    """Change what stands somewhere after a place."""
    data = path.read_bytes()
    write(path, data[:at] + data[at:].replace(old, new, 1))


@pytest.mark.parametrize("new", [b"n1ne word", b"one long word"], ids=["of-a-size", "longer"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_file_that_changed_before_the_place_is_told(
    tmp_path: Path, small: None, kind: str, new: bytes
) -> None:
    path = kinds(tmp_path)[kind]
    out = tmp_path / "out"
    killed_after(4, out, path)
    edited(path, b"one word", new, 0)
    failed = qkvmill("run", path, "--out", out, *JOB)
    assert failed.status == 1
    assert f"Error: {path} has changed since its tokens were written" in failed.stderr
    run(out, path, "--overwrite")
    assert parts(run(tmp_path / "new", path)) == parts(out)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_file_that_ends_before_the_place_is_told(tmp_path: Path, small: None, kind: str) -> None:
    path = kinds(tmp_path)[kind]
    killed_after(4, tmp_path / "out", path)
    write(path, path.read_bytes().partition(b"word")[0] + b'"\n')
    failed = qkvmill("run", path, "--out", tmp_path / "out", *JOB)
    assert failed.status == 1
    assert f"Error: {path} has changed since its tokens were written" in failed.stderr


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_file_that_changed_after_the_place_gives_what_it_holds_now(
    tmp_path: Path, small: None, kind: str
) -> None:
    path = kinds(tmp_path)[kind]
    out = tmp_path / "out"
    killed_after(4, out, path)
    edited(path, b"one word", b"n1ne word", len(path.read_bytes()) * 3 // 4)
    run(out, path)
    assert parts(run(tmp_path / "new", path)) == parts(out)


def test_a_part_that_ends_after_a_document_of_nothing_and_bad_records_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PART_TOKENS", 4)
    monkeypatch.setattr(cutting, "TASK_BYTES", 1)
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "a.jsonl", jsonl(["one", ""]))
    write(folder / "b.jsonl", b"bad\n")
    write(folder / "c.jsonl", jsonl(["one two three four five six"]))
    options = (*JOB[:-1], "--bad-records", "skip")
    succeed("run", folder, "--out", tmp_path / "new", *options)
    real = stream.token_entry

    def first(of: Any) -> object:
        if of.first_token:
            raise ExportError("the disk is gone")
        return real(of)

    with monkeypatch.context() as patched:
        patched.setattr(stream, "token_entry", first)
        assert qkvmill("run", folder, "--out", tmp_path / "out", *options).status == 1
    again = succeed("run", folder, "--out", tmp_path / "out", *options)
    assert "starting over" not in again.stderr
    assert parts(tmp_path / "new") == parts(tmp_path / "out")


def test_an_export_as_a_corpus_wants_the_tokenizer_that_it_was_made_with(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words and more of them " * 20)
    options = ("--export", "tokens", "--context-length", 8)
    succeed("run", tmp_path / "a.txt", "--out", tmp_path / "made", *options)
    for command in ("run", "plan"):
        other = qkvmill(command, tmp_path / "made", "--out", tmp_path / "out", *options,
                        "--tokenizer", "gpt2")  # fmt: skip
        assert other.status == 1
        assert "is an export with tokens of cl100k_base, not of gpt2; give --tokenizer" in (
            other.stderr
        )
    succeed("run", tmp_path / "made", "--out", tmp_path / "out", *options)
    name = "tokens/tokens-00001.safetensors"
    assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
