import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest

from jobs.errors import CorpusError
from jobs.inputs.files import Corpus, find_files, notes
from tests.helpers import write_corpus


def write(folder: Path, names: Iterable[str]) -> Path:
    """A folder with files of four bytes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    return folder


def names(corpus: Corpus) -> list[str]:
    return [file.name for file in corpus.files]


def test_folders_are_walked_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, ["b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "B.txt", "a-b/x.txt"])
    write(tmp_path, [".hidden.txt", ".git/x.txt", "notes.rst", "a/image.png"])
    corpus = find_files([str(tmp_path)])
    assert names(corpus) == ["B.txt", "a/b/c.txt", "a/z.txt", "a-b/x.txt", "a.txt", "b.txt"]
    assert (corpus.skipped_files, corpus.bytes) == (2, 24)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ("text", None)),
        ("a.md", ("text", None)),
        ("a.b.TXT", ("text", None)),
        ("a.jsonl", ("jsonl", None)),
        ("a.json", ("jsonl", None)),
        ("a.ndjson.zst", ("jsonl", "zst")),
        ("a.csv.gz", ("csv", "gz")),
        ("a.tsv.bz2", ("tsv", "bz2")),
        ("a.parquet", ("parquet", None)),
        ("a.npy.xz", ("npy", "xz")),
        ("a.bin", ("bin", None)),
        ("a.safetensors", ("safetensors", None)),
    ],
)
def test_a_name_says_how_a_file_is_read(tmp_path: Path, name: str, kind: tuple[str, str]) -> None:
    (file,) = find_files([str(write(tmp_path, [name]) / name)]).files
    assert kind == (file.format, file.compression)
    assert (file.location, file.name, file.bytes) == (str(tmp_path / name), name, 4)


def test_a_format_that_is_given_holds_for_every_file(tmp_path: Path) -> None:
    write(tmp_path, ["log.1", "log.2.gz", "x.csv", ".hidden", "tokens/manifest.json"])
    corpus = find_files([str(tmp_path)], format="jsonl")
    assert [(file.name, file.format, file.compression) for file in corpus.files] == [
        ("log.1", "jsonl", None),
        ("log.2.gz", "jsonl", "gz"),
        ("tokens/manifest.json", "jsonl", None),
        ("x.csv", "jsonl", None),
    ]
    assert corpus.skipped_files == 0


def test_paths_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "folder", x="1", y="2")
    first = str(write_corpus(tmp_path, z="3") / "z.txt")
    found = find_files([first, str(folder), first])
    assert names(found) == ["z.txt", "x.txt", "y.txt", "z.txt"]


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", a="text")
    (tmp_path / "corpus/loop").symlink_to(tmp_path / "corpus")
    assert names(find_files([str(tmp_path / "corpus")])) == ["a.txt"]


def test_a_name_that_is_not_utf8_is_found_and_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.txt")
    Path(path).write_text("text")
    (file,) = find_files([str(tmp_path)]).files
    assert (file.location, file.name) == (path, "a\\xff.txt")


def test_of_an_export_the_token_stream_is_taken(tmp_path: Path) -> None:
    export = [
        "tokens/tokens-00002.safetensors", "tokens/tokens-00001.safetensors", "manifest.json",
        "run.json", "SHA256SUMS", "weights.safetensors", "shards/shard-00001-of-00001.safetensors",
    ]  # fmt: skip
    expected = ["tokens/tokens-00001.safetensors", "tokens/tokens-00002.safetensors"]
    own = find_files([str(write(tmp_path / "export", export))])
    assert (names(own), own.skipped_files) == (expected, 5)
    assert {file.format for file in own.files} == {"safetensors"}
    above = find_files([str(write(tmp_path, ["a.json", "tokens.safetensors", "w.safetensors"]))])
    assert names(above) == ["a.json", "tokens.safetensors"]
    assert above.skipped_files == 8
    assert names(find_files([str(tmp_path / "export")], format="safetensors")) == expected


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "**/*/", "*/*"])
def test_a_pattern_names_each_file_once(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, ["a/b.txt", "a/b/c.txt.gz", "a/b/d/e.txt", "a/b/d/x.png"])
    corpus = find_files([str(tmp_path / pattern)])
    assert names(corpus) == ["a/b/c.txt.gz", "a/b/d/e.txt", "a/b.txt"]
    assert corpus.skipped_files == 1


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "*/*", "s*", "**/*.txt", "sub", "sub/d??p"])
def test_a_pattern_of_a_url_matches_what_that_of_a_path_does(tmp_path: Path, pattern: str) -> None:
    files = [
        "a.txt",
        "s.txt",
        "sub/b.txt",
        "sub/deep/c.txt",
        "sub2/x.txt",
        "sub/.no.txt",
        "sub/x.c",
    ]
    write(tmp_path, files)
    system, folder = fsspec.filesystem("memory"), f"/qkvmill-{tmp_path.name}"
    for name in files:
        system.pipe(f"{folder}/{name}", b"text")
    here, there = (find_files([f"{root}/{pattern}"]) for root in (tmp_path, f"memory:/{folder}"))
    system.rm(folder, recursive=True)
    assert names(here) == names(there)
    assert here.skipped_files == there.skipped_files


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/**/*"])
def test_exports_among_other_files_are_left_out_and_told(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "corpus", ["a.txt", "deep/b.txt", "notes.rst"])
    write(tmp_path / "corpus/out", ["manifest.json", "tokens/tokens-00001.safetensors"])
    write(tmp_path / "corpus/deep/cut", ["tokens/tokens-00001.safetensors"])  # an unfinished one
    folder = tmp_path / "corpus"
    corpus = find_files([f"{folder}{pattern}"])
    assert names(corpus) == ["a.txt", "deep/b.txt"]
    assert (corpus.skipped_files, corpus.exports) == (4, ())
    export = "(an export; name it itself to read its tokens)"
    assert notes(corpus) == [
        f"files that are not read: 4, such as {folder}/deep/cut {export}, {folder}/out {export}, "
        f"{folder}/notes.rst"
    ]
    named = find_files([str(folder), str(folder / "out")])
    assert names(named) == ["a.txt", "deep/b.txt", "tokens/tokens-00001.safetensors"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*"])
def test_exports_alone_are_read_and_told(tmp_path: Path, pattern: str) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, ["manifest.json", "run.json", "tokens/tokens-00001.safetensors"])
    corpus = find_files([f"{tmp_path}{pattern}"])
    assert names(corpus) == [f"{name}/tokens/tokens-00001.safetensors" for name in ("one", "two")]
    assert notes(corpus) == [
        f"reading the token streams of exports: {tmp_path}/one, {tmp_path}/two",
        "files that are not read: 4",
    ]


def test_notes_name_the_first_and_count_the_rest(tmp_path: Path) -> None:
    write(tmp_path, ["a.txt", *(f"{number}.png" for number in range(7)), "new\nline.png"])
    (tmp_path / "empty.txt").touch()
    corpus = find_files([str(tmp_path)], skip_empty=True)
    first = ", ".join(f"{tmp_path}/{number}.png" for number in range(5))
    assert notes(corpus) == [f"files that are not read: 9, such as {first} and 4 more"]
    (tmp_path / "a.png").mkdir()
    for number in range(7):
        (tmp_path / f"{number}.png").unlink()
    assert notes(find_files([str(tmp_path)], skip_empty=True)) == [
        f"files that are not read: 2, such as {tmp_path}/new\\nline.png, "
        f"{tmp_path}/empty.txt (empty)"
    ]


def test_the_folder_of_the_export_is_no_part_of_the_corpus(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a="text")
    out = write_corpus(corpus / "out/deep", b="text").parent
    for path in (str(corpus), str(corpus / "*"), str(corpus / "**")):
        assert names(find_files([path], out=out)) == ["a.txt"]
        assert find_files([path], out=out).skipped_files == 0
        assert len(find_files([path], out=corpus / "none").files) == 2


def test_folders_may_be_nested_deeper_than_calls_may(tmp_path: Path) -> None:
    deepest = str(tmp_path / "corpus")
    for _ in range(1200):
        os.mkdir(deepest)
        deepest += "/d"
    os.mkdir(deepest)
    Path(deepest, "a.txt").write_text("text")
    try:
        assert len(find_files([str(tmp_path / "corpus")]).files) == 1
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "corpus"], check=True)


def test_a_pattern_names_files_and_folders_below_its_fixed_part(tmp_path: Path) -> None:
    write(tmp_path, ["2025-1/a.txt", "2025-2/b.txt", "2025-2/c.png", "2024/d.txt", "2025.md"])
    corpus = find_files([str(tmp_path / "2025*")])
    assert names(corpus) == ["2025-1/a.txt", "2025-2/b.txt", "2025.md"]
    assert corpus.skipped_files == 1
    assert names(find_files([str(tmp_path / "**/[ab].txt")])) == ["2025-1/a.txt", "2025-2/b.txt"]


def test_a_path_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, ["[a].txt", "a.txt", "b*/x.txt", "bb/y.txt"])
    assert names(find_files([str(tmp_path / "[a].txt")])) == ["[a].txt"]
    assert names(find_files([str(tmp_path / "b*")])) == ["x.txt"]


def test_a_list_holds_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, ["a.txt", "b/c.txt", "b/d.txt", " e .md"]))
    (tmp_path / "list").write_bytes("\ufeffb\r\n\n  \n./ e .md\na.*\n-\n".encode())
    corpus = find_files(["a.txt", "@list"])
    assert names(corpus) == ["a.txt", "c.txt", "d.txt", " e .md", "a.txt", "stdin"]


def test_standard_input_is_text_unless_a_format_is_given() -> None:
    (file,) = find_files(["-"]).files
    assert (file.location, file.format, file.compression, file.bytes) == ("-", "text", None, None)
    assert find_files(["-"], format="jsonl").files[0].format == "jsonl"
    assert find_files(["-"]).bytes == 0


def test_urls_name_files_folders_and_patterns(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    folder = "/qkvmill-files"
    for name in ("b.txt", "a/x.jsonl.gz", "c.png", ".hidden/d.txt", "a/tokens.safetensors.gz"):
        system.pipe(f"{folder}/{name}", b"four")
    below = find_files([f"memory:/{folder}"])
    assert [(file.name, file.location) for file in below.files] == [
        ("a/x.jsonl.gz", f"memory://{folder}/a/x.jsonl.gz"),
        ("b.txt", f"memory://{folder}/b.txt"),
    ]
    assert (below.skipped_files, below.bytes) == (2, 8)
    assert names(find_files([f"memory:/{folder}/*/x*"])) == ["a/x.jsonl.gz"]
    assert names(find_files([f"memory:/{folder}/a/x.jsonl.gz"])) == ["x.jsonl.gz"]
    assert names(find_files([f"memory:/{folder}/c.png"], format="text")) == ["c.png"]
    system.rm(folder, recursive=True)
    here = write(tmp_path, ["a.txt", "b/c.txt"])
    assert find_files([f"file://{here}"]) == find_files([str(here)])
    assert names(find_files([f"file://{here}/*/c.txt"])) == ["b/c.txt"]


def test_paths_that_cannot_be_a_corpus_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["data.log", "x.gz", "t.safetensors.gz", "others/a.png"])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "nothing.list").write_text("\n \n")
    (tmp_path / "nested.list").write_text("data.log\n@nothing.list\n")
    (tmp_path / "latin.list").write_bytes(b"caf\xe9.txt")
    fsspec.filesystem("memory").pipe("/qkvmill-empty.txt", b"")
    for path, reason in [
        ("none.txt", r"none\.txt could not be read: No such file"),
        ("empty.txt", r"empty\.txt is empty; remove it"),
        ("data.log", r"data\.log is not of a kind that is read \(.txt, .*give --format"),
        ("x.gz", r"x\.gz is not of a kind"),
        ("t.safetensors.gz", "is a compressed safetensors file; decompress it"),
        ("folder", r"folder holds no file of a kind that is read \(.txt"),
        ("others", "others holds no file"),
        ("fifo.txt", r"fifo\.txt is not a regular file; what comes through a pipe is named -"),
        ("*.text", r"\*\.text matches no file of a kind"),
        ("others/*", "matches 1 files, none of a kind"),
        ("@none", "the list none could not be read: No such file"),
        ("@folder", "folder is not a regular file"),
        ("@nothing.list", "names nothing; write a path on each line"),
        ("@nested.list", r"names '@nothing.list' \(path 2\)"),
        ("@latin.list", "is not UTF-8: byte 3 of the list"),
        ("memory://qkvmill-none.txt", "memory://qkvmill-none.txt could not be read: it is not the"),
        ("memory://qkvmill-none*", "qkvmill-none. holds no file of a kind"),
        ("memory://qkvmill-empty.txt", "is empty; remove it"),
    ]:
        with pytest.raises(CorpusError, match=reason) as error:
            find_files([path])
        assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match=r"standard input \(-\) is given twice"):
        find_files(["-", "-"])
    with pytest.raises(CorpusError, match="a compressed safetensors file"):
        find_files(["x.gz"], format="safetensors")


def test_empty_files_are_skipped_and_counted_if_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(CorpusError, match=r"b\.txt is empty; .* or give --bad-records skip"):
        find_files([str(tmp_path)])
    corpus = find_files([str(tmp_path)], skip_empty=True)
    assert [file.name for file in corpus.files] == ["a.txt"]
    assert corpus.skipped_files == 2
    with pytest.raises(CorpusError, match="all files of the corpus, 1, are empty"):
        find_files([str(tmp_path / "b.txt")], skip_empty=True)
