import csv
import gzip
import io
import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.config import JobConfig
from jobs.estimate import COMPRESSED_TIMES, WHOLE_BYTES, Estimate, estimate, needs_no_sample
from jobs.inputs.files import Corpus, InputFile, find_files
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer, load_encoding
from tests.helpers import DATA

PROBE_BYTES = 2048  # so small that a corpus of a megabyte is large


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_encoding("cl100k_base")


@pytest.fixture(scope="module")
def paragraphs(tokenizer: Tokenizer) -> dict[str, list[tuple[str, int]]]:
    """Paragraphs of each kind of text, and their tokens."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path in sorted((DATA / "corpus").rglob("*.txt")):
        for part in path.read_text("utf-8").split("\n\n"):
            if text := part.strip():
                text += "\n"
                count = len(tokenizer.encode_text(text))
                found.setdefault(path.parent.name, []).append((text, count))
    return found


def estimated(
    path: object, tokenizer: Tokenizer, size: int = PROBE_BYTES, **options: Any
) -> Estimate:
    config = JobConfig(corpus=(str(path),), out=Path("nowhere"), export=("tokens",), **options)
    corpus = find_files(config.corpus, format=config.format)
    found = estimate(config, corpus, tokenizer, Reporter(quiet=True), size)
    assert found is not None
    return found


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def table_of(texts: list[str]) -> bytes:
    held = io.StringIO(newline="")
    writer = csv.writer(held)
    writer.writerow(["id", "text"])
    writer.writerows([1, text] for text in texts)
    return held.getvalue().encode()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "txt": lambda texts: "".join(texts).encode(),
    "jsonl": lines_of,
    "csv": table_of,
    "jsonl.gz": lambda texts: gzip.compress(lines_of(texts), 1),
}


def write_mixture(
    folder: Path, seed: int, paragraphs: dict[str, list[tuple[str, int]]], kinds: list[str]
) -> int:
    """A corpus of about 800 kB in files of all sizes and languages; returns its tokens."""
    rng = random.Random(seed)
    folder.mkdir()
    tokens, made = -1, 0
    mean = rng.choice([3_000, 30_000, 300_000])
    while made < 800_000:
        size = mean * rng.lognormvariate(0, 1)
        languages = list(paragraphs) if rng.random() < 0.3 else [rng.choice(list(paragraphs))]
        texts: list[str] = []
        length = 0
        kind = rng.choice(kinds)
        while length < size:
            many = min(30, int(rng.paretovariate(1.2)))
            drawn = rng.choices(paragraphs[rng.choice(languages)], k=many)
            texts.append("".join(text for text, _ in drawn))
            length += len(texts[-1].encode())
            tokens += sum(count for _, count in drawn) + (kind != "txt")
        tokens += kind == "txt"
        data = WRITERS[kind](texts)
        (folder / f"{made:09d}.{kind}").write_bytes(data)
        made += len(data)
    return tokens


def test_the_truth_lies_within_the_error(
    tmp_path: Path, tokenizer: Tokenizer, paragraphs: dict[str, list[tuple[str, int]]]
) -> None:
    kinds = [["txt"], ["jsonl"], ["csv"], ["jsonl.gz"], list(WRITERS)]
    within, errors = 0, []
    for seed in range(40):
        folder = tmp_path / str(seed)
        truth = write_mixture(folder, seed, paragraphs, kinds[seed % 5])
        found = estimated(folder, tokenizer)
        within += abs(found.tokens - truth) <= found.tokens_error
        errors.append(found.tokens_error / truth)
    assert within >= 36
    assert np.mean(errors) < 0.2


def test_lines_longer_than_what_is_read_are_as_likely_as_short_ones(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    long, short = "One fish, two fish. " * 400, "0 1 2 3 4 5 6 7 8 9"
    texts = random.Random(0).sample([long] * 200 + [short] * 20_000, 20_200)
    (tmp_path / "a.jsonl").write_bytes(lines_of(texts))
    truth = 200 * len(tokenizer.encode_text(long)) + 20_000 * len(tokenizer.encode_text(short))
    truth += len(texts) - 1
    found = estimated(tmp_path / "a.jsonl", tokenizer)
    assert abs(found.tokens - truth) <= found.tokens_error
    assert abs(found.documents - 20_200) < 0.35 * 20_200
    assert sum(found.weights) == pytest.approx(found.documents, rel=1e-3)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz", "parquet"])
def test_records_that_are_all_alike_are_known_without_an_error(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    texts = ["One fish, two fish, red fish, blue fish."] * 20_000
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": texts}), path, row_group_size=999)
    else:
        path.write_bytes(WRITERS[kind](texts))
    found = estimated(path, tokenizer)
    truth = 20_000 * (len(tokenizer.encode_text(texts[0])) + 1) - 1
    assert found.tokens == pytest.approx(truth, rel=0.01)
    assert found.tokens_error < 0.02 * truth
    assert found.documents == pytest.approx(20_000, rel=0.01)
    if kind == "parquet":
        assert (truth, 20_000) == (found.tokens, found.documents)


@pytest.mark.parametrize("kind", ["npy", "npy.gz", "bin", "safetensors"])
def test_ids_are_counted_by_the_size_of_their_file(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    ids = np.random.default_rng(0).integers(0, 5000, 500_000).astype("<u4")
    ids[999::1000] = 100257
    path = tmp_path / f"a.{kind}"
    if kind == "safetensors":
        save_file({"input_ids": ids.astype("<i4"), "document_starts": np.arange(500) * 1000}, path)
    else:
        held = io.BytesIO()
        np.save(held, ids)
        data = ids.tobytes() if kind == "bin" else held.getvalue()
        path.write_bytes(gzip.compress(data, 1) if kind == "npy.gz" else data)
    found = estimated(path, tokenizer, token_dtype="uint32" if kind == "bin" else None)
    assert found.tokens == pytest.approx(500_000, rel=0.01 if kind == "npy.gz" else 1e-9)
    assert found.documents == pytest.approx(500, rel=0.02)
    assert found.tokens_error == 0


def test_the_same_corpus_gives_the_same_estimate(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{n} fish.\n" for n in range(50_000)))
    first, second = estimated(tmp_path, tokenizer), estimated(tmp_path, tokenizer)
    names = ("tokens", "tokens_error", "documents", "distinct_tokens", "sampled_bytes")
    assert all(getattr(first, name) == getattr(second, name) for name in names)


def test_text_files_count_as_one_document_each(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in range(300):
        (tmp_path / f"{name}.txt").write_text("One fish, two fish.\n" * 10)
    found = estimated(tmp_path, tokenizer)
    assert (300, 300 * (len(tokenizer.encode_text("One fish, two fish.\n" * 10)) + 1) - 1) == (
        found.documents,
        found.tokens,
    )
    assert len(found.lengths) == 64
    assert sum(found.weights) == pytest.approx(300)


def test_distinct_tokens_grow_but_not_beyond_the_vocabulary(
    tmp_path: Path, tokenizer: Tokenizer, paragraphs: dict[str, list[tuple[str, int]]]
) -> None:
    every = [text for texts in paragraphs.values() for text, _ in texts]
    (tmp_path / "a.txt").write_text("".join(random.Random(0).choices(every, k=3000)))
    truth = len(set(tokenizer.encode_text((tmp_path / "a.txt").read_text()).tolist()))
    found = estimated(tmp_path / "a.txt", tokenizer)
    assert 0.7 * truth < found.distinct_tokens < 1.5 * truth
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, tokenizer.rows_needed, 8_000_000))
    few = estimated(tmp_path / "a.npy", tokenizer, 8 * 2048)
    assert few.distinct_tokens == tokenizer.rows_needed


@pytest.mark.parametrize(
    ("line", "reason"),
    [(0, "a.jsonl: line 1 is not JSON"), (5000, "a.jsonl: the line at byte 90000 is not JSON")],
    ids=["first", "amid"],
)
def test_a_bad_record_is_named_by_its_place(
    tmp_path: Path, tokenizer: Tokenizer, line: int, reason: str
) -> None:
    lines = [b'{"text":"word 1"}'] * 10_000
    lines[line] = b'{"text":"word 1",'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    # Everything is in the sample, so the bad line is, too.
    found = estimated(tmp_path / "a.jsonl", tokenizer, 4096)
    assert found.obstacle is not None
    assert reason in found.obstacle
    assert "mend it, or give --bad-records skip" in found.obstacle
    skipped = estimated(tmp_path / "a.jsonl", tokenizer, 4096, bad_records="skip")
    assert skipped.obstacle is None
    assert skipped.bad_records >= 1


def test_a_sample_without_a_record_says_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = json.dumps({"text": "word " * 1000}).encode()
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    config = JobConfig(corpus=(str(tmp_path),), out=tmp_path / "out", export=("tokens",))
    corpus = find_files(config.corpus)
    assert estimate(config, corpus, tokenizer, Reporter(quiet=True), 8) is None


def test_a_small_corpus_needs_no_sample() -> None:
    def corpus(*sizes: int | None, compression: str | None = None) -> Corpus:
        files = [InputFile(f"{n}", f"{n}", "text", compression, s, "") for n, s in enumerate(sizes)]
        return Corpus(tuple(files), 0)

    assert needs_no_sample(corpus(WHOLE_BYTES - 1, 1))
    assert not needs_no_sample(corpus(WHOLE_BYTES, 1))
    assert needs_no_sample(corpus(WHOLE_BYTES, None))
    assert needs_no_sample(corpus(WHOLE_BYTES // COMPRESSED_TIMES, compression="gz"))
    assert not needs_no_sample(corpus(WHOLE_BYTES // COMPRESSED_TIMES + 1, compression="gz"))


class _Server(BaseHTTPRequestHandler):
    """Answers with a file, or with a part of it where it is asked to and can."""

    def __init__(self, data: bytes, ranges: bool, sent: list[int], *args: Any) -> None:
        self.data, self.ranges, self.sent = data, ranges, sent
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(b"", len(self.data), 200)

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        if self.ranges and asked.startswith("bytes="):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            part = self.data[int(start) : int(stop) + 1 if stop else None]
            self._answer(part, len(part), 206)
        else:
            self._answer(self.data, len(self.data), 200)

    def _answer(self, data: bytes, length: int, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes */{len(self.data)}")
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            return
        self.sent.append(len(data))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[bytes, str, bool], str]]:
    servers = []

    def serve(data: bytes, name: str, ranges: bool) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, data, ranges, []))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/{name}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "jsonl.gz", "parquet"])
def test_a_file_elsewhere_gives_the_same_estimate(
    tmp_path: Path,
    tokenizer: Tokenizer,
    served: Callable[[bytes, str, bool], str],
    paragraphs: dict[str, list[tuple[str, int]]],
    kind: str,
) -> None:
    texts = random.Random(0).choices([text for text, _ in paragraphs["english"]], k=2000)
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": texts}), path, row_group_size=100)
    else:
        path.write_bytes(WRITERS[kind](texts))
    here = estimated(path, tokenizer)
    with fsspec.open(f"memory://est/a.{kind}", "wb") as file:
        file.write(path.read_bytes())
    there = [
        f"memory://est/a.{kind}",
        served(path.read_bytes(), path.name, True),
        served(path.read_bytes(), path.name, False),
    ]
    for url in there:
        found = estimated(url, tokenizer)
        assert (here.tokens, here.tokens_error) == (found.tokens, found.tokens_error), url
