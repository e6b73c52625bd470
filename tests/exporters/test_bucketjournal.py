import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from exporters.bucket import Bucket
from exporters.bucketjournal import BucketJournal, line_names, read_bucket_journal
from exporters.errors import ExportError
from exporters.manifest import FileEntry

BUCKET = Bucket("memory://journals/a")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[BucketJournal]:
    journal = BucketJournal(tmp_path, BUCKET, {"seed": 0})
    journal.hold()
    journal.restart()
    yield journal
    fsspec.filesystem("memory").store.clear()


def entry(root: Path, name: str, kind: str, data: bytes) -> FileEntry:
    """The entry of a file that is written to root."""
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(
        name=name, kind=kind, bytes=len(data), sha256=sha256, first=0, count=0, tensors={}
    )


def read(root: Path) -> BucketJournal | None:
    return read_bucket_journal(root, BUCKET, line_names(BUCKET.list()))


def test_a_line_is_an_object_with_its_check(journal: BucketJournal) -> None:
    journal.add_note("method", 1)
    first, second = line_names(BUCKET.list())
    assert [f".work/journal/00000{n}-{journal.run[:4]}" for n in (0, 1)] == [first, second]
    check, _, text = ((BUCKET / first).read_all() or b"").partition(b" ")
    assert hashlib.sha256(text).hexdigest()[:16].encode() == check
    assert json.loads(text) == {"fingerprint": {"seed": 0}}


def test_what_is_noted_is_read_again_with_versions(journal: BucketJournal, tmp_path: Path) -> None:
    shard = entry(tmp_path, "shards/a.safetensors", "windows", b"123")
    tokens = entry(tmp_path, "tokens/a.safetensors", "tokens", b"45")
    journal.add_file(shard)
    journal.add_file(tokens, {"more": 1})
    kept = read(tmp_path)
    assert kept is not None
    assert {shard.name: shard, tokens.name: tokens} == kept.files
    assert {shard.name: None, tokens.name: {"more": 1}} == kept.details
    for name in kept.files:
        assert BUCKET.list()[name].version == kept.versions[name] is not None
    assert not (tmp_path / shard.name).exists()
    assert (tmp_path / tokens.name).exists()
    kept.run = journal.run
    kept.add_note("next", 1)
    assert line_names(BUCKET.list())[-1].startswith(".work/journal/000003-")


def test_a_delivered_file_is_not_uploaded(journal: BucketJournal, tmp_path: Path) -> None:
    shard = entry(tmp_path, "shards/a.safetensors", "windows", b"123")
    with pytest.raises(ExportError, match="is not there after 3 bytes were written"):
        journal.add_file(shard, delivered=True)
    (BUCKET / shard.name).upload(tmp_path / shard.name)
    journal.add_file(shard, delivered=True)
    assert {shard.name: shard} == journal.files


def test_the_run_that_came_last_goes_on(journal: BucketJournal, tmp_path: Path) -> None:
    shard = entry(tmp_path, "shards/a.safetensors", "windows", b"123")
    later = BucketJournal(tmp_path, BUCKET, {"seed": 0})
    later.hold()
    later.check_held()
    taken = r"memory://journals/a was taken over by process \d+ on "
    with pytest.raises(ExportError, match=taken):
        journal.add_note("a", 1)
    with pytest.raises(ExportError, match=taken):
        journal.add_file(shard)
    assert shard.name not in BUCKET.list()


def test_a_journal_without_sense_is_none(journal: BucketJournal, tmp_path: Path) -> None:
    (first,) = line_names(BUCKET.list())
    (BUCKET / first).put(b"nonsense\n")
    assert read(tmp_path) is None
    BUCKET.remove([first])
    assert read(tmp_path) is None
