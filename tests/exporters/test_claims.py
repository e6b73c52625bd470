"""Exports in a store of this process's memory; tests/test_s3.py has those of a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from exporters.bucket import Bucket
from exporters.bucketjournal import BucketJournal
from exporters.errors import ExportError
from exporters.reading import open_export
from tests.helpers import SMALL, Result, qkvmill, succeed, write_corpus

URL = "memory://bucket/prefix"
ABOVE = "/bucket/prefix/"
SIZES = ("--context-length", 16, "--shard-size", "20kB", "--batch-size", 1)
JOB = (*SMALL, *SIZES, "--tokenizer", "gpt2", "--vocab-size", "corpus")
TABLES = ("--method", "tables")


@pytest.fixture(autouse=True)
def store() -> Iterator[dict[str, Any]]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system.store
    system.store.clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("corpus"),
        a="The five boxing wizards jump quickly. " * 20,
        b="Sphinx of black quartz, judge my vow.\n" * 20,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> bytes:
    """SHA256SUMS of the job with tables, in a folder."""
    out = tmp_path_factory.mktemp("expected") / "out"
    succeed("run", corpus, "--out", out, *JOB, *TABLES)
    return (out / "SHA256SUMS").read_bytes()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def _snapshots(corpus: Path) -> dict[str, dict[str, Any]]:
    """What a store holds of the job with tables, unfinished after two shards and finished."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    unfinished("run", corpus, *JOB, *TABLES)
    snapshots = {"unfinished": dict(system.store)}
    succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    return snapshots | {"finished": dict(system.store)}


@pytest.fixture
def begun(_snapshots: dict[str, dict[str, Any]], store: dict[str, Any]) -> dict[str, Any]:
    """The store, with the unfinished export."""
    store.update(_snapshots["unfinished"])
    return store


@pytest.fixture
def done(_snapshots: dict[str, dict[str, Any]], store: dict[str, Any]) -> dict[str, Any]:
    """The store, with the finished export."""
    store.update(_snapshots["finished"])
    return store


def names(store: dict[str, Any]) -> set[str]:
    return {name.removeprefix(ABOVE) for name in store}


def data_of(store: dict[str, Any], name: str) -> bytes:
    return bytes(store[ABOVE + name].getvalue())


def change(store: dict[str, Any], name: str, edit: Callable[[bytes], bytes]) -> None:
    (Bucket(URL) / name).put(edit(data_of(store, name)))


def unfinished(*command: object, shards: int = 2) -> Result:
    """Run a job of which only so many shards can be uploaded."""
    real = Bucket.upload

    def some(self: Bucket, file: Path) -> None:
        if "/shards/" in self.url and int(file.name[6:11]) > shards:
            raise ExportError("the store is gone")
        real(self, file)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bucket, "upload", some)
        result = qkvmill(*command, "--out", URL)
    assert result.status == 1
    assert "the store is gone" in result.stderr
    return result


@pytest.mark.parametrize(
    "options",
    [
        TABLES,
        ("--method", "direct", "--export", "features", "--export", "qkv"),
        ("--artifact", "compact", "--boundaries", "split", "--tail", "pad"),
        ("--sampling", "random", "--batches", 3, "--layout", "bthd"),
    ],
    ids=["tables", "direct", "compact-split", "random"],
)
def test_an_export_is_the_same_as_in_a_folder(
    tmp_path: Path, corpus: Path, scratch: Path, store: dict[str, Any], options: tuple[object, ...]
) -> None:
    out = tmp_path / "out"
    succeed("run", corpus, "--out", out, *JOB, *options)
    result = succeed("run", corpus, "--out", URL, *JOB, *options, "--scratch", scratch, "--json")
    assert result.json["out"] == URL
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == names(store)
    for name in files - {"run.json"}:
        assert (out / name).read_bytes() == data_of(store, name), name
    assert list(scratch.iterdir()) == []
    succeed("verify", URL)
    again = succeed("run", corpus, "--out", URL, *JOB, *options)
    assert "holds this very export already, finished" in again.stderr
    here, there = open_export(out), open_export(URL)
    for index in (0, len(here) // 2, -1):
        for name, tensor in here[index].items():
            assert torch.equal(tensor, there[index][name]), name
    shown = succeed("inspect", out, "--window", 1).stdout
    assert shown == succeed("inspect", URL, "--window", 1).stdout


def test_what_is_done_is_kept(
    corpus: Path, begun: dict[str, Any], expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(begun)
    assert sum(name.startswith("shards/") for name in names(begun)) == 2
    assert "no finished export" in qkvmill("verify", URL).stderr
    for place in ("jobs.stream.tokenise", "jobs.parameters.build", "jobs.parameters.save_layer"):
        monkeypatch.setattr(place, None)
    result = succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert f"{URL} holds an unfinished export: going on, 5 files of" in result.stderr
    for name, file in before.items():
        if "/.work/" not in name:
            assert begun[name] is file, "it is not written again"
    monkeypatch.undo()
    assert expected == data_of(begun, "SHA256SUMS")
    assert not any(name.startswith(".work/") for name in names(begun))


FLIP = bytes.maketrans(bytes(range(256)), bytes([*range(1, 256), 0]))
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "shard-other-bytes": ("shards/", lambda data: data[:-1] + data[-1:].translate(FLIP)),
    "shard-cut": ("shards/", lambda data: data[:-1]),
    "shard-gone": ("shards/", None),
    "tokens-other-bytes": ("tokens/", lambda data: data[:-1] + data[-1:].translate(FLIP)),
    "tables-gone": (".work/tables", None),
    "weights-cut": ("weights", lambda data: data[:-4]),
}


@pytest.mark.parametrize(
    ("begins", "edit", "versions"),
    [
        *(pytest.param(*damage, True, id=name) for name, damage in DAMAGES.items()),
        pytest.param(*DAMAGES["shard-other-bytes"], False, id="no-version"),
    ],
)
def test_what_changed_in_the_bucket_is_made_again(
    corpus: Path,
    begun: dict[str, Any],
    expected: bytes,
    begins: str,
    edit: Callable[[bytes], bytes] | None,
    versions: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not versions:
        monkeypatch.setattr("exporters.bucket.VERSIONS", ())
        begun.clear()
        unfinished("run", corpus, *JOB, *TABLES)
    name = min(name for name in names(begun) if name.startswith(begins))
    if edit is None:
        del begun[ABOVE + name]
    else:
        change(begun, name, edit)
    result = succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert f"{URL}/{name} is not as it was written: it is made again" in result.stderr
    assert "4 files of" in result.stderr
    assert expected == data_of(begun, "SHA256SUMS")
    succeed("verify", URL)


def test_a_version_that_changed_is_enough(corpus: Path, begun: dict[str, Any]) -> None:
    name = min(name for name in names(begun) if name.startswith("shards/"))
    change(begun, name, lambda data: data)
    result = succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert f"{URL}/{name} is not as it was written" in result.stderr


def test_a_damaged_line_ends_the_journal(
    corpus: Path, begun: dict[str, Any], expected: bytes
) -> None:
    lines = sorted(name for name in names(begun) if name.startswith(".work/journal/"))
    assert len(lines) == 8  # fingerprint, 5 files, 2 notes
    change(begun, lines[-1], lambda data: data[:-3])
    result = succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert "4 files of" in result.stderr
    assert expected == data_of(begun, "SHA256SUMS")


def test_strays_are_removed_and_another_prefix_is_left_alone(
    corpus: Path, begun: dict[str, Any]
) -> None:
    for name in ("shards/other", "tokens/other", ".work/other"):
        (Bucket(URL) / name).put(b"1")
    (Bucket(f"{URL}2") / "shards/other").put(b"1")
    succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert not any(name.endswith("other") for name in names(begun) if not name.startswith("/"))
    assert "/bucket/prefix2/shards/other" in begun


def test_another_job_is_refused_before_it_takes_anything(
    corpus: Path, begun: dict[str, Any], expected: bytes
) -> None:
    before = dict(begun)
    result = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES, "--seed", 1)
    assert result.status == 1
    assert "options.seed was 0, now 1" in result.stderr
    assert before == begun
    succeed("run", corpus, "--out", URL, *JOB, *TABLES, "--seed", 1, "--overwrite")
    result = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES)
    assert "holds a finished export of other options" in result.stderr
    succeed("run", corpus, "--out", URL, *JOB, *TABLES, "--overwrite")
    assert expected == data_of(begun, "SHA256SUMS")


def test_with_overwrite_the_manifest_goes_first(corpus: Path, store: dict[str, Any]) -> None:
    succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    unfinished("run", corpus, *JOB, *TABLES, "--seed", 1, "--overwrite", shards=0)
    assert "manifest.json" not in names(store)
    assert not any(name.startswith("shards/") for name in names(store))


def test_what_is_not_ours_is_left_alone(corpus: Path, store: dict[str, Any]) -> None:
    (Bucket(URL) / "letters/a.txt").put(b"Dear")
    result = qkvmill("run", corpus, "--out", URL, *JOB)
    assert result.status == 1
    assert f"--out {URL} holds something else (letters)" in result.stderr
    assert {"letters/a.txt"} == names(store)


def test_an_error_with_nothing_done_leaves_nothing(
    tmp_path: Path, store: dict[str, Any], scratch: Path
) -> None:
    short = write_corpus(tmp_path / "short", a="Too short")
    result = qkvmill("run", short, "--out", URL, *JOB, "--scratch", scratch)
    assert result.status == 1
    assert set() == names(store)
    assert list(scratch.iterdir()) == []


def test_who_was_taken_over_stops_and_leaves_the_export_alone(
    corpus: Path, store: dict[str, Any], expected: bytes
) -> None:
    real = Bucket.upload
    ran: list[int] = []

    def meanwhile(self: Bucket, file: Path) -> None:
        real(self, file)
        if "/shards/" in self.url and not ran:
            ran.append(1)
            succeed("run", corpus, "--out", URL, *JOB, *TABLES)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bucket, "upload", meanwhile)
        patched.setattr("torch.get_num_threads", lambda: 1)
        late = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES)
    assert late.status == 1
    assert f"--out {URL} was finished or removed by another run" in late.stderr
    succeed("verify", URL)
    assert expected == data_of(store, "SHA256SUMS")


def test_who_took_it_over_is_named(corpus: Path, store: dict[str, Any]) -> None:
    real = Bucket.upload

    def taken(self: Bucket, file: Path) -> None:
        real(self, file)
        if "/shards/" in self.url:
            (Bucket(URL) / ".work/holder").put(b"process 7 on elsewhere since then\nab\n")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bucket, "upload", taken)
        result = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES)
    assert result.status == 1
    assert f"--out {URL} was taken over by process 7 on elsewhere since then" in result.stderr


def test_a_file_that_another_writes_to_is_found_before_the_commit(
    corpus: Path, store: dict[str, Any], expected: bytes
) -> None:
    real = Bucket.upload
    written: list[str] = []

    def change_the_first(self: Bucket, file: Path) -> None:
        real(self, file)
        if "/shards/" in self.url:
            written.append(f"shards/{file.name}")
        if len(written) == 5:
            change(store, written[0], lambda data: data[:-1] + data[-1:].translate(FLIP))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bucket, "upload", change_the_first)
        result = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES)
    assert result.status == 1
    assert f"{URL}/{written[0]} was removed or changed after it was written" in result.stderr
    assert "manifest.json" not in names(store)
    again = succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    assert f"{URL}/{written[0]} is not as it was written: it is made again" in again.stderr
    assert expected == data_of(store, "SHA256SUMS")


def test_what_was_delivered_is_only_looked_at(
    corpus: Path, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BucketJournal.add_file

    def elsewhere(self: BucketJournal, entry: Any, details: Any = None) -> None:
        if entry.kind == "windows":
            data = (self.root / entry.name).read_bytes()
            (self.bucket / entry.name).put(data[: len(data) - cut])
        real(self, entry, details, delivered=entry.kind == "windows")

    monkeypatch.setattr(BucketJournal, "add_file", elsewhere)
    cut = 1
    result = qkvmill("run", corpus, "--out", URL, *JOB, *TABLES)
    assert result.status == 1
    assert "bytes after" in result.stderr
    cut = 0
    succeed("run", corpus, "--out", URL, *JOB, *TABLES)
    succeed("verify", URL)


def test_expand_reads_from_and_writes_to_buckets(
    tmp_path: Path, corpus: Path, store: dict[str, Any]
) -> None:
    compact, full = f"{URL}/compact", f"{URL}/full"
    options = ("--boundaries", "split", "--tail", "pad", "--export", "features", "--export", "qkv")
    succeed("run", corpus, "--out", compact, *JOB, *options, "--artifact", "compact")
    succeed("expand", compact, "--out", full, "--device", "cpu")
    succeed("expand", compact, "--out", tmp_path / "full", "--device", "cpu")
    sums = (tmp_path / "full/SHA256SUMS").read_bytes()
    assert sums == data_of(store, "full/SHA256SUMS")
    succeed("verify", full, "--sample", 3)
    succeed("verify", compact, "--sample", 3)
    again = succeed("expand", compact, "--out", full, "--device", "cpu")
    assert "finished: nothing is done" in again.stderr
    for out in (compact, f"{compact}/inner"):
        assert qkvmill("expand", compact, "--out", out, "--device", "cpu").status == 1


PROBLEMS: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {
    "flipped": ("shards/", lambda data: data[:-1] + data[-1:].translate(FLIP), "do not match"),
    "missing": ("tokens/", None, ": missing"),
    "cut": ("weights", lambda data: data[:-1], " bytes, not "),
    "sums": ("SHA256SUMS", lambda data: data + b"x", "holds more than a line for each file"),
}


@pytest.mark.parametrize(("begins", "edit", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_verify_finds_what_is_wrong(
    done: dict[str, Any],
    begins: str,
    edit: Callable[[bytes], bytes] | None,
    said: str,
) -> None:
    name = min(name for name in names(done) if name.startswith(begins))
    if edit is None:
        del done[ABOVE + name]
    else:
        change(done, name, edit)
    result = qkvmill("verify", URL)
    assert result.status == 1
    assert name in result.stderr
    assert said in result.stderr


def test_verify_finds_what_is_extra(done: dict[str, Any]) -> None:
    for name in ("shards/other", "letters/a/b"):
        (Bucket(URL) / name).put(b"1")
    stderr = qkvmill("verify", URL).stderr
    assert "shards/other: extra, a file that is not part of the export" in stderr
    assert "letters: extra, a folder that is not part of the export" in stderr
    assert "letters/a" not in stderr


def test_plan_writes_nothing(corpus: Path, store: dict[str, Any]) -> None:
    plan = succeed("plan", corpus, "--out", URL, *JOB, "--json").json
    assert plan["obstacle"] is None
    assert set() == names(store)


def test_leftovers_of_a_commit_are_removed(corpus: Path, store: dict[str, Any]) -> None:
    succeed("run", corpus, "--out", URL, *JOB)
    (Bucket(URL) / ".work/journal/000000-abcd").put(b"1")
    succeed("verify", URL)
    succeed("run", corpus, "--out", URL, *JOB)
    assert not any(name.startswith(".work/") for name in names(store))


def test_options_that_do_not_fit(tmp_path: Path, corpus: Path) -> None:
    result = qkvmill("run", corpus, "--out", tmp_path / "out", "--scratch", tmp_path)
    assert result.status == 2
    assert "--scratch has no effect" in result.stderr
    result = qkvmill("run", corpus, "--out", "https://host/x", *JOB)
    assert result.status == 1
    assert "is on a web server" in result.stderr
    result = qkvmill("run", f"{URL}/in/a.txt", "--out", URL, *JOB)
    assert result.status == 1
    (Bucket(URL) / "in/a.txt").put(b"text " * 100)
    result = qkvmill("run", f"{URL}/in/a.txt", "--out", URL, *JOB)
    assert result.status == 2
    assert f"the corpus {URL}/in/a.txt lies in --out {URL}" in result.stderr


def test_a_url_of_this_machine_is_its_path(tmp_path: Path, corpus: Path) -> None:
    succeed("run", corpus, "--out", f"file://{tmp_path}/out", *JOB)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["format"] == "qkvmill"
    succeed("verify", f"file://{tmp_path}/out")
