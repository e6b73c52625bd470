from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from exporters.bucket import Bucket, Stored, place_of
from exporters.errors import ExportError

URL = "memory://bucket/prefix"


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def bucket(store: Any) -> Bucket:
    return Bucket(URL)


def test_what_is_put_is_listed_by_its_name_and_read_by_ranges(bucket: Bucket) -> None:
    (bucket / "tokens/a").put(b"0123456789")
    (bucket / "b").put(b"")
    there = bucket.list()
    assert {name: found.bytes for name, found in there.items()} == {"tokens/a": 10, "b": 0}
    assert (bucket / "tokens/a").read(3, 6) == b"345"
    assert (bucket / "b").read(0, 0) == b""
    assert (bucket / "tokens/a").read_all() == b"0123456789"


def test_a_file_is_uploaded_and_its_version_changes_with_its_bytes(
    bucket: Bucket, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    versions = set()
    for data in (b"one", b"two"):
        file.write_bytes(data)
        (bucket / "shards/a").upload(file)
        stored = (bucket / "shards/a").look()
        assert stored is not None
        assert stored == bucket.list()["shards/a"]
        assert stored.bytes == 3
        assert data == (bucket / "shards/a").read_all()
        versions.add(stored.version)
    assert len(versions) == 2


def test_a_store_that_tells_no_version_is_known_as_such(
    bucket: Bucket, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "a").put(b"123")
    monkeypatch.setattr("exporters.bucket.VERSIONS", ("ETag",))
    assert Stored(3, None) == (bucket / "a").look()


def test_a_prefix_is_a_folder(bucket: Bucket) -> None:
    (Bucket(f"{URL}2") / "a").put(b"1")
    (Bucket("memory://bucket") / "a").put(b"1")
    assert bucket.list() == {}


def test_a_listing_is_always_fresh(bucket: Bucket) -> None:
    assert bucket.list() == {}
    (bucket / "a").put(b"1")
    assert {"a"} == bucket.list().keys()
    bucket.remove(["a", "never was there"])
    assert bucket.list() == {}
    assert (bucket / "a").look() is None
    assert (bucket / "a").read_all() is None


def test_an_object_is_read_as_a_file(bucket: Bucket) -> None:
    data = bytes(range(256)) * 100
    (bucket / "a").put(data)
    for buffer in (16, 1 << 16):
        with (bucket / "a").open(buffer) as file:
            assert len(data) == file.seek(0, 2)
            assert file.seek(300) == 300
            assert data[300:310] == file.read(10)
            assert data[310:] == file.read()
            assert file.read(1) == b""
    with pytest.raises(FileNotFoundError):
        (bucket / "b").open()


def test_an_object_that_is_cut_short_is_said(bucket: Bucket) -> None:
    (bucket / "a").put(b"123")
    with pytest.raises(ExportError, match=r"memory://bucket/prefix/a could not be read: it is cut"):
        (bucket / "a").read(1, 5)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda bucket: bucket.list(), "listed"),
        (lambda bucket: bucket.look(), "read"),
        (lambda bucket: bucket.put(b""), "written"),
        (lambda bucket: (bucket / "a").remove([]) or bucket.remove(["a"]), "removed"),
    ],
    ids=["list", "look", "put", "remove"],
)
def test_what_a_store_refuses_is_said_in_one_line(
    bucket: Bucket, store: Any, call: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("sorry\nand more")

    for name in ("find", "info", "pipe_file", "rm_file"):
        monkeypatch.setattr(type(store), name, fail)
    with pytest.raises(ExportError, match=f"could not be {what}: sorry") as raised:
        call(bucket)
    assert "\n" not in str(raised.value)


def test_locations_are_paths_or_buckets(tmp_path: Path) -> None:
    assert Path("a/b") == place_of("a/b")
    assert tmp_path == place_of(tmp_path)
    assert tmp_path / "x" == place_of(f"file://{tmp_path}/x")
    assert Bucket(URL) == place_of(f"{URL}/")
    assert f"{URL}/a/b" == str(place_of(URL) / "a/b")


def test_a_url_of_nothing_is_refused() -> None:
    with pytest.raises(ExportError, match="memory:// names no bucket; give one"):
        place_of("memory://")


def test_a_bucket_itself_is_a_place(store: Any) -> None:
    bucket = place_of("memory://bucket/")
    assert isinstance(bucket, Bucket)
    (bucket / "a").put(b"1")
    assert {"a"} == bucket.list().keys()


def test_secrets_are_not_shown() -> None:
    assert str(Bucket("sftp://me:secret@host/x")) == "sftp://host/x"


def test_a_web_server_takes_no_objects() -> None:
    with pytest.raises(ExportError, match="https://host/x is on a web server"):
        Bucket("https://host/x").check_writable()


def test_a_protocol_that_nobody_knows_is_named() -> None:
    with pytest.raises(ExportError, match="Protocol not known: nobody"):
        place_of("nobody://a")
