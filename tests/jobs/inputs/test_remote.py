import hashlib
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import fsspec
import pytest
import tenacity
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from jobs.errors import CorpusError
from jobs.inputs import attempts
from jobs.inputs.files import find_files
from jobs.inputs.opening import FileRead, open_seekable, open_stream
from jobs.inputs.remote import READ_BYTES
from tests.jobs.inputs.streams import COMPRESS, quiet, read

DATA = random.Random(0).randbytes(3 * READ_BYTES + 77)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAIT", tenacity.wait_none())


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory; opening them and reads of READ_BYTES fail with what is planned."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    plan: list[Exception | None] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def fail(self) -> None:
        if self.plan and (error := self.plan.pop(0)):
            raise error

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        stream = super()._open(path, mode, **options)
        if mode != "rb":
            return stream
        self.fail()
        own = self

        class Reading(BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                own.fail()
                return super().read(size)

        return Reading(stream.getvalue())


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    system.store.clear()
    Flaky.plan = []
    yield system
    _registry.pop("flaky", None)


def noted(url: str) -> tuple[bytes, list[str], FileRead]:
    (file,) = find_files([url]).files
    said: list[str] = []
    record = FileRead()
    with open_stream(file, record, said.append) as stream:
        return stream.read(), said, record


def reset() -> Exception:
    return ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param([reset(), None], id="open"),
        pytest.param([None, reset()], id="first"),
        pytest.param([None, None, None, reset()], id="middle"),
        pytest.param([None, None, None, None, None, reset()], id="end"),
        pytest.param([None, *[None] * 2, *[reset()] * 4], id="four-times"),
    ],
)
def test_what_fails_is_read_on_from_where_it_was(
    flaky: Flaky, plan: list[Exception | None]
) -> None:
    flaky.pipe("/a.bin", DATA)
    expected = [
        f"reading flaky:///a.bin failed (Connection reset by peer): trying again, {n + 2} of 5"
        for n in range(sum(error is not None for error in plan))
    ]
    Flaky.plan = list(plan)
    found, said, record = noted("flaky:///a.bin")
    assert found == DATA
    assert expected == said
    assert hashlib.sha256(DATA).digest() == record.digest.digest()
    assert len(DATA) == record.bytes


def test_the_fifth_failure_at_one_place_is_the_last(flaky: Flaky) -> None:
    flaky.pipe("/a.bin", DATA)
    Flaky.plan = [None, None, *[reset()] * 5]
    with pytest.raises(
        CorpusError, match=r"flaky:///a.bin could not be read: Connection reset by peer, 5 times$"
    ):
        noted("flaky:///a.bin")


def test_what_is_not_allowed_is_not_tried_again(flaky: Flaky) -> None:
    flaky.pipe("/a.bin", DATA)
    Flaky.plan = [PermissionError(13, "Permission denied"), reset()]
    with pytest.raises(CorpusError, match=r"could not be read: Permission denied$"):
        noted("flaky:///a.bin")
    assert len(Flaky.plan) == 1


@pytest.mark.parametrize("plan", [[None, None, reset()], []], ids=["while-reopened", "at-the-end"])
@pytest.mark.parametrize("size", [len(DATA), 5], ids=["same-size", "shorter"])
def test_a_file_that_changes_while_it_is_read_is_named(
    flaky: Flaky, plan: list[Exception | None], size: int
) -> None:
    flaky.pipe("/a.bin", DATA)
    (file,) = find_files(["flaky:///a.bin"]).files
    Flaky.plan = plan

    def drain() -> None:
        with open_stream(file, FileRead(), lambda _: None) as stream:
            stream.read(10)
            flaky.pipe("/a.bin", bytes(size))
            stream.read()

    with pytest.raises(CorpusError, match=f"flaky:///a.bin changed since it .*{len(DATA)} bytes"):
        drain()


def test_a_file_that_changes_before_it_is_opened_is_named(flaky: Flaky) -> None:
    flaky.pipe("/a.bin", DATA)
    (file,) = find_files(["flaky:///a.bin"]).files
    flaky.pipe("/a.bin", DATA)
    with (
        pytest.raises(CorpusError, match="changed since"),
        open_stream(file, FileRead(), quiet),
    ):
        pass
    flaky.rm("/a.bin")
    with (
        pytest.raises(CorpusError, match=r"flaky:///a.bin could not be read: it is not there$"),
        open_stream(file, FileRead(), quiet),
    ):
        pass


def test_a_compressed_remote_file_is_seekable_as_a_copy(flaky: Flaky) -> None:
    stored = COMPRESS["zst"](DATA)
    flaky.pipe("/a.npy.zst", stored)
    (file,) = find_files(["flaky:///a.npy.zst"]).files
    record = FileRead()
    with open_seekable(file, record, quiet, None) as stream:
        stream.seek(READ_BYTES)
        assert DATA[READ_BYTES:] == stream.read()
    assert len(stored) == record.bytes


@dataclass
class Site:
    """What a server answers, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    sized: bool = True
    refuse: list[int] = field(default_factory=list)  # statuses of the next answers to GET
    cut: list[int] = field(default_factory=list)  # bytes of the next answers to GET
    asked: list[str | None] = field(default_factory=list)  # the Range of each GET


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, get: bool) -> None:
            path = self.path.partition("?")[0]
            data = site.files.get(path)
            if path.endswith("/"):
                links = [name.removeprefix(path) for name in site.files if name.startswith(path)]
                data = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
            status = site.refuse.pop(0) if get and site.refuse else 200 if data is not None else 404
            if status != 200 or data is None:
                self.send_response(status, "Sorry")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            etag = hashlib.sha256(data).hexdigest()
            asked = self.headers.get("Range")
            if get:
                site.asked.append(asked)
            if asked and site.ranges:
                first = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                data = data[first:]
            else:
                self.send_response(200)
            if path.endswith("/"):
                self.send_header("Content-Type", "text/html")
            self.send_header("ETag", etag)
            if site.sized:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if get:
                self.wfile.write(data[: site.cut.pop(0)] if site.cut else data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "not-sized"])
def test_an_http_file_is_read_in_one_answer(site: Site, sized: bool) -> None:
    site.files["/d/a.txt.gz"] = COMPRESS["gz"](DATA)
    site.sized = sized
    (file,) = find_files([f"{site.url}/d/a.txt.gz?key=secret"]).files
    assert (file.name, file.compression) == ("a.txt.gz", "gz")
    assert file.bytes == (len(site.files["/d/a.txt.gz"]) if sized else None)
    site.asked.clear()
    assert read(f"{site.url}/d/a.txt.gz?key=secret", READ_BYTES) == DATA
    assert site.asked[-1] is None


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_an_http_file_that_breaks_off_is_read_on(site: Site, ranges: bool) -> None:
    site.files["/a.bin"] = DATA
    site.ranges = ranges
    site.cut = [2 * READ_BYTES + 9, READ_BYTES // 2 if ranges else 3 * READ_BYTES]
    found, said, record = noted(f"{site.url}/a.bin")
    assert found == DATA
    assert len(DATA) == record.bytes
    assert len(said) == 2
    assert all(f"reading {site.url}/a.bin failed (" in line for line in said)
    assert all(asked and asked.startswith("bytes=") for asked in site.asked[1:])


def test_an_http_server_that_is_busy_is_asked_again(site: Site) -> None:
    site.files["/a.txt"] = b"text"
    (file,) = find_files([f"{site.url}/a.txt"]).files
    site.refuse = [503, 429]
    said: list[str] = []
    with open_stream(file, FileRead(), said.append) as stream:
        assert stream.read() == b"text"
    assert said == [
        f"reading {site.url}/a.txt failed (503 Sorry): trying again, 2 of 5",
        f"reading {site.url}/a.txt failed (429 Sorry): trying again, 3 of 5",
    ]


def test_an_http_file_that_is_another_when_it_is_read_on_is_named(site: Site) -> None:
    site.files["/a.bin"] = DATA
    site.cut = [READ_BYTES]
    (file,) = find_files([f"{site.url}/a.bin"]).files

    def change(_: str) -> None:
        site.files["/a.bin"] = bytes(len(DATA))

    def drain() -> None:
        with open_stream(file, FileRead(), change) as stream:
            stream.read()

    with pytest.raises(CorpusError, match="changed since"):
        drain()


def test_an_http_folder_holds_what_its_page_links(site: Site) -> None:
    site.files |= {"/d/b.txt": b"text", "/d/a.jsonl": b"{}", "/d/c.png": b"x", "/e.txt": b"x"}
    corpus = find_files([f"{site.url}/d/"])
    assert [(file.name, file.bytes) for file in corpus.files] == [("a.jsonl", 2), ("b.txt", 4)]
    assert corpus.skipped_files == 1
    assert [file.name for file in find_files([f"{site.url}/d/*.txt"]).files] == ["b.txt"]


def test_an_http_file_that_cannot_be_had_is_named_with_the_reason(site: Site) -> None:
    with pytest.raises(CorpusError, match=r"/none.txt could not be read: it is not there$"):
        find_files([f"{site.url}/none.txt?key=secret"])
    site.refuse = [403]
    with pytest.raises(CorpusError, match=r"/none.txt could not be read: 403 Sorry$"):
        find_files([f"{site.url}/none.txt"])
    with pytest.raises(CorpusError, match=r"http://127.0.0.1:1/a.txt could not be read: ") as error:
        find_files(["http://127.0.0.1:1/a.txt"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://bucket/a.txt", "s3fs", "s3"),
        ("gs://bucket/a.txt", "gcsfs", "gs"),
        ("hf://datasets/a/b/c.txt", "huggingface_hub", "hf"),
        ("https://host/a.txt", "aiohttp", "http"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = url.partition("://")[0]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, protocol, raising=False)
    expected = (
        f"{url} could not be opened: {protocol}:// needs the package {module}, which is not "
        f"installed; install it with pip install 'qkvmill[{extra}]'"
    )
    with pytest.raises(CorpusError) as error:
        find_files([url])
    assert expected == str(error.value)


def test_a_protocol_that_nobody_knows_is_named() -> None:
    with pytest.raises(CorpusError, match="Protocol not known: nobody; known are s3, "):
        find_files(["nobody://a/b.txt"])
