import codecs
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.corpus import READ_BYTES, TextRecord, find_files, read_text
from jobs.errors import CorpusError
from tests.helpers import write_corpus


def read(path: Path, errors: str = "strict") -> tuple[str, TextRecord]:
    record = TextRecord()
    (file,) = find_files([path]).files
    return "".join(read_text(file, errors, record)), record


def test_folders_are_walked_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "B.txt", "a-b/x.txt"):
        write_corpus((tmp_path / name).parent, **{Path(name).stem: "text"})
    for name in (".hidden.txt", ".git/x.txt", "notes.md", "a/image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    corpus = find_files([tmp_path])
    expected = ["B.txt", "a/b/c.txt", "a/z.txt", "a-b/x.txt", "a.txt", "b.txt"]
    assert expected == [file.name for file in corpus.files]
    assert corpus.skipped_files == 2
    assert corpus.bytes == 24


def test_paths_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "folder", x="1", y="2")
    first = write_corpus(tmp_path, z="3") / "z.txt"
    assert [f.name for f in find_files([first, folder]).files] == ["z.txt", "x.txt", "y.txt"]


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", a="text")
    (tmp_path / "corpus/loop").symlink_to(tmp_path / "corpus")
    assert [f.name for f in find_files([tmp_path / "corpus"]).files] == ["a.txt"]


@pytest.mark.parametrize(
    "text", ["plain\n", "小沈阳\r\n", "\ttabs and  spaces \n\n", "👩‍👩‍👧", "\ufeff"]
)
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8], ids=["no-bom", "bom"])
def test_text_is_read_exactly_without_the_bom(tmp_path: Path, text: str, bom: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bom + text.encode())
    if not bom and text == "\ufeff":
        with pytest.raises(CorpusError, match="is empty"):
            read(path)
        return
    found, record = read(path)
    assert text == found
    assert len(path.read_bytes()) == record.bytes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.digest.hexdigest()


def test_characters_across_the_ends_of_reads_are_whole(tmp_path: Path) -> None:
    for shift in range(4):
        text = "x" * (READ_BYTES - shift) + "👩" * 3 + "y" * READ_BYTES + "é"
        path = write_corpus(tmp_path, a=text) / "a.txt"
        assert text == read(path)[0]


@pytest.mark.parametrize("before", [0, 3, READ_BYTES - 1, READ_BYTES, 2 * READ_BYTES + 5])
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8], ids=["no-bom", "bom"])
def test_bytes_that_are_not_utf8_are_named_by_their_offset(
    tmp_path: Path, before: int, bom: bytes
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bom + b"x" * before + b"\xff" + b"y" * 9)
    with pytest.raises(CorpusError) as error:
        read(path)
    assert f"{path} is not UTF-8: byte {len(bom) + before} is 0xff" in str(error.value)


def test_a_character_that_the_file_ends_in_is_named_by_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ab雪".encode()[:-1])
    with pytest.raises(CorpusError, match="byte 2 is 0xe9"):
        read(path)


def test_replacing_counts_each_sequence_and_not_the_marks_already_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ok \ufffd ".encode() + b"\xff\xfe and \xe9\x9b" + "雪".encode() + b"\xe9")
    text, record = read(path, "replace")
    assert text == "ok \ufffd \ufffd\ufffd and \ufffd雪\ufffd"
    assert record.replaced == 4


@pytest.mark.parametrize("before", [0, 5, READ_BYTES + 7])
def test_a_binary_file_is_named_by_its_first_nul(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * before + b"\x00\xff\x00")
    for errors in ("strict", "replace"):
        with pytest.raises(CorpusError, match=f"a.txt is binary, not text: byte {before} is NUL"):
            read(path, errors)


def test_paths_that_cannot_be_a_corpus_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bom.txt").write_bytes(codecs.BOM_UTF8)
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    os.mkfifo(tmp_path / "folder2-fifo.txt")
    for name, reason in [
        ("none.txt", "No such file"),
        ("empty.txt", "is empty"),
        ("bom.txt", "is empty"),
        ("data.jsonl", "not a .txt file"),
        ("folder", "holds no .txt file"),
        ("fifo.txt", "not a regular file"),
    ]:
        with pytest.raises(CorpusError, match=reason) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewritten(path: Path) -> None:
    path.write_bytes(b"y" * path.stat().st_size)


def exchanged(path: Path) -> None:
    kept = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    other.replace(path)


def shortened(path: Path) -> None:
    os.truncate(path, 9)


# Of a file that is exchanged while it is read, the one that was found is read to its end.
@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        *[(change, 0) for change in (appended, rewritten, exchanged, shortened, Path.touch)],
        *[(change, 1) for change in (appended, rewritten, shortened, Path.touch)],
    ],
)
def test_a_file_that_changes_after_it_was_found_is_named(
    tmp_path: Path, change: Callable[[Path], None], blocks: int
) -> None:
    path = write_corpus(tmp_path, a="x" * (3 * READ_BYTES)) / "a.txt"
    os.utime(path, (1, 1))
    (file,) = find_files([path]).files
    text = read_text(file, "strict", TextRecord())
    for _ in range(blocks):
        next(text)
    change(path)
    with pytest.raises(CorpusError, match=r"a\.txt changed since .* when nobody writes to it"):
        list(text)


def test_a_file_that_grows_without_end_is_not_followed(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, a="x" * READ_BYTES) / "a.txt"
    (file,) = find_files([path]).files
    text = read_text(file, "strict", TextRecord())
    next(text)
    with path.open("ab") as growing:
        growing.truncate(1 << 40)  # a hole: more than could be read
    with pytest.raises(CorpusError, match="changed since"):
        list(text)


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, a="text") / "a.txt"
    (file,) = find_files([path]).files
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorpusError, match="not a regular file"):
        list(read_text(file, "strict", TextRecord()))


def test_folders_may_be_nested_deeper_than_calls_may(tmp_path: Path) -> None:
    deepest = str(tmp_path / "corpus")
    for _ in range(1200):
        os.mkdir(deepest)
        deepest += "/d"
    os.mkdir(deepest)
    Path(deepest, "a.txt").write_text("text")
    try:
        assert len(find_files([tmp_path / "corpus"]).files) == 1
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "corpus"], check=True)


def test_the_folder_of_the_export_is_no_part_of_the_corpus(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="text")
    out = write_corpus(corpus / "out/deep", b="text").parent
    (out / "manifest.json").write_text("{}")
    found = find_files([corpus], out)
    assert ([file.name for file in found.files], found.skipped_files) == (["a.txt"], 0)
    assert len(find_files([corpus], corpus / "none").files) == 2
