"""What strangers and mistakes bring: each ends in one line and its exit status, and harms nothing.

Every line of the tables is an input, the exit status it has to end with, and the words that name
the culprit. The command `open` stands for the Python call open_export and its windows.
"""

import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.reading import open_export
from jobs.printable import UNSEEN
from kernels.errors import QkvmillError
from tests.helpers import ROOT, SMALL, Result, qkvmill, random_layer, small_export, write_corpus

TEXT = "Enough text for a window of sixteen tokens, and then some more of it to be sure. " * 3
ESCAPE = "\x1b]0;owned\x07\x1b[31m"
HUGE = 10**30


@dataclass(frozen=True)
class Place:
    """A folder for one bad input, and exports to copy into it."""

    folder: Path
    exported: Path
    compacted: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"


Arguments = list[Any]
Make = Callable[[Place], Arguments]
Case = tuple[str, Make, int, str]


def corpus(p: Place, text: str = TEXT) -> Path:
    return write_corpus(p.folder / "corpus", a=text) / "a.txt"


def job(p: Place, *options: object, command: str = "run") -> Arguments:
    """A job on good text with more options."""
    return [command, corpus(p), "--out", p.out, *SMALL, *options]


def plain_job(p: Place, *options: object) -> Arguments:
    """A job on good text with these options alone."""
    return ["run", corpus(p), "--out", p.out, *options]


def job_on(p: Place, path: Path | str, *options: object, command: str = "run") -> Arguments:
    """A job on a bad corpus."""
    return [command, path, "--out", p.out, *SMALL, *options]


def file_with(p: Place, data: bytes | str, name: str = "bad.txt") -> Path:
    path = p.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def folder_with(p: Place, name: str, make: Callable[[Path], object]) -> Path:
    """A corpus folder that holds one good file, and one thing that `make` makes."""
    folder = write_corpus(p.folder / "mixed", good=TEXT)
    make(folder / name)
    return folder


def config(p: Place, text: bytes | str) -> Arguments:
    return job(p, "--config", file_with(p, text, "job.toml"))


def listening(path: Path) -> None:
    # The address of a socket has 107 bytes at most.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(path.name)
    finally:
        os.chdir(before)


def header_file(p: Place, header: Any, data: bytes = b"", name: str = "w.safetensors") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file_with(p, struct.pack("<Q", len(text)) + text + data, name)


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def weights(p: Place, scalars: Any = None, **changes: Any) -> Arguments:
    """A job with a layer whose tensors or scalars are changed; None leaves a tensor out."""
    layer = random_layer(d=8, head_dim=2, vocabulary_size=100277, positions=False)
    tensors = {name: tensor.clone() for name, tensor in layer.named_tensors().items()}
    for name, change in changes.items():
        if change is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = change
    text = scalars if isinstance(scalars, str) else json.dumps(scalars or {"heads": 4})
    save_file(tensors, p.folder / "w.safetensors", metadata={"qkvmill": text})
    return weights_job(p, p.folder / "w.safetensors")


def weights_job(p: Place, path: Path | str) -> Arguments:
    return ["run", corpus(p), "--out", p.out, "--context-length", 16, "--weights", path]


def tokenizer_json(p: Place, data: Any, *options: object) -> Arguments:
    """A job with this tokenizer.json; an end of text is not needed unless options say so."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    folder = file_with(p, text, "tokenizer.json").parent
    return job(p, "--separator", "none", "--tokenizer", folder, *options)


def model(**changes: Any) -> dict[str, Any]:
    """The least tokenizer.json, with values of its model changed."""
    return {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], **changes}}


def headed(p: Place, header: Any, data: bytes = b"") -> Arguments:
    """A job with a weights file of this header."""
    return weights_job(p, header_file(p, header, data))


def made(p: Place, name: str, make: Callable[[Path], object]) -> Path:
    make(p.folder / name)
    return p.folder / name


def sparse(path: Path) -> None:
    """A file that is larger than what it takes on the disk."""
    with path.open("wb") as file:
        file.truncate(200_000_000)


def full(p: Place) -> Path:
    return Path(shutil.copytree(p.exported, p.folder / "export"))


def compact(p: Place) -> Path:
    return Path(shutil.copytree(p.compacted, p.folder / "compact"))


def manifest(export: Path, place: str, value: Any) -> Path:
    """The export with a value of its manifest replaced, or dropped for `DROP`."""
    path = export / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    *parents, last = place.split(".")
    target: Any = document
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    if value is DROP:
        del target[last]
    else:
        target[int(last) if last.isdigit() else last] = value
    path.write_text(json.dumps(document))
    return export


DROP = object()


def manifest_text(export: Path, text: bytes | str) -> Path:
    (export / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return export


def swapped(export: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The export with something else in the place of a file; a name may end in `*`."""
    path = sorted(export.glob(name))[0]
    path.unlink()
    make(path)
    return export


def tables(export: Path, scalars: Any = None, **changes: Any) -> Path:
    """A compact export with tables changed; None leaves one out."""
    path = export / "tables.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]) if callable(change) else change
    text = (
        scalars if isinstance(scalars, str) else json.dumps(scalars or {"heads": 4, "kv_heads": 4})
    )
    save_file(tensors, path, metadata={"qkvmill": text})
    return export


def stream(export: Path, **changes: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """An export whose token stream holds other values."""
    path = export / "tokens/tokens-00001.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        tensors[name] = change(tensors[name].clone())
    save_file(tensors, path, metadata={"format": "pt"})
    return export


def shard_starts(export: Path, value: int) -> Path:
    """An export whose first shard says that its windows begin elsewhere."""
    path = sorted((export / "shards").glob("*"))[0]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["window_start"].fill_(value)
    save_file(tensors, path, metadata={"format": "pt"})
    return export


def linked_out(p: Place, export: Path, name: str) -> Path:
    path = sorted(export.glob(name))[0]
    shutil.move(path, p.folder / "elsewhere")
    path.symlink_to(p.folder / "elsewhere")
    return export


OPTIONS: list[Case] = [
    ("no-such-command", lambda p: ["rnu"], 2, "No such command 'rnu'"),
    ("misspelt-option", lambda p: job(p, "--ouput", "x"), 2, "--ouput"),
    ("no-out", lambda p: ["run", corpus(p)], 2, "--out"),
    ("empty-out", lambda p: ["run", corpus(p), "--out", ""], 2, "the path is empty"),
    ("inspect-nothing", lambda p: ["inspect"], 2, "EXPORT"),
    ("expand-without-out", lambda p: ["expand", compact(p)], 2, "--out"),
    ("window-word", lambda p: ["inspect", full(p), "--window", "last"], 2, "'last'"),
    ("long-corpus-path", lambda p: job_on(p, "a" * 5000), 1, "File name too long"),
    ("long-out", lambda p: ["run", corpus(p), "--out", p.folder / ("a" * 300), *SMALL], 1, "long"),
    ("long-weights-path", lambda p: weights_job(p, "w" * 5000), 1, "could not be read: File name"),
    ("long-export-path", lambda p: ["verify", "e" * 5000], 1, "File name too long"),
    *[
        (f"huge-{name}", lambda p, name=name: plain_job(p, f"--{name}", HUGE), 2,
         f"--{name} {HUGE}")
        for name in ("context-length", "d-model", "heads", "kv-heads", "batch-size", "batches",
                     "stride", "seed")
    ],
    ("2^63-windows", lambda p: job(p, "--batches", 2**63), 2, "is not below 2^63"),
    ("stride-2^62", lambda p: job(p, "--stride", 2**62, "--context-length", 4096), 1, "need 4097"),
    ("digits-no-int-takes", lambda p: job(p, "--stride", "9" * 5000), 2, "--stride"),
    ("vocab-digits", lambda p: job(p, "--vocab-size", "9" * 5000), 2, "--vocab-size 999"),
    ("vocab-float", lambda p: job(p, "--vocab-size", "1e5"), 2, "--vocab-size 1e5"),
    ("vocab-beyond-disk", lambda p: job(p, "--vocab-size", 10**17), 1, "its disk has"),
    ("size-nan", lambda p: job(p, "--shard-size", "nan"), 2, "'nan' is not a size"),
    ("size-negative", lambda p: job(p, "--shard-size", "-5MB"), 2, "--shard-size -5000000"),
    ("size-beyond", lambda p: job(p, "--shard-size", "9e99TB"), 2, "is not below 2^63"),
    ("size-unit", lambda p: job(p, "--shard-size", "5XB"), 2, "'5XB' is not a size"),
    ("size-empty", lambda p: job(p, "--shard-size", ""), 2, "'' is not a size"),
    ("device-number", lambda p: job(p, "--device", "cuda:9999"), 2, "'cuda:9999'"),
    ("device-escape", lambda p: job(p, "--device", ESCAPE), 2, r"\x1b]0;owned"),
    ("expand-device", lambda p: ["expand", compact(p), "--out", p.out, "--device", "x"], 2, "'x'"),
    ("tokenizer-empty", lambda p: job(p, "--tokenizer", ""), 2, "--tokenizer ''"),
    ("tokenizer-escape", lambda p: job(p, "--tokenizer", ESCAPE), 2, r"\x1b]0;owned"),
    ("tokenizer-text", lambda p: job(p, "--tokenizer", "/etc/passwd"), 1, "passwd is not JSON"),
    ("tokenizer-near", lambda p: job(p, "--tokenizer", "gpt-2"), 2, "did you mean gpt2?"),
    ("tokenizer-nul", lambda p: config(p, r'tokenizer = "a\u0000b"'), 2, r"'a\x00b' is not known"),
    ("tokenizer-long", lambda p: job(p, "--tokenizer", "t" * 5000), 2, "is not known"),
    ("tokenizer-folder", lambda p: job(p, "--tokenizer", p.folder), 1, "holds no tokenizer.json"),
    ("tokenizer-fifo", lambda p: job(p, "--tokenizer", made(p, "t", os.mkfifo)), 1,
     "t is not a regular file"),
    ("tokenizer-device", lambda p: job(p, "--tokenizer", "/dev/zero"), 1, "is not a regular file"),
    ("tokenizer-loop", lambda p: job(p, "--tokenizer", made(p, "t", lambda f: f.symlink_to(f))), 1,
     "t could not be read: Too many levels"),
    ("tokenizer-loop-within", lambda p: job(p, "--tokenizer", made(
        p, "tokenizer.json", lambda f: f.symlink_to(f)
    ).parent), 1, "tokenizer.json could not be read: Too many levels"),
    ("tokenizer-folder-within", lambda p: job(
        p, "--tokenizer", made(p, "tokenizer.json", os.mkdir).parent
    ), 1, "tokenizer.json is not a regular file"),
    ("tokenizer-large", lambda p: job(p, "--tokenizer", made(p, "t.json", sparse)), 1,
     "t.json has more than 100,000,000 bytes"),
    ("tokenizer-sentencepiece", lambda p: tokenizer_json(p, b"\n\x0e\n\x05<unk>\x15\xff"), 1,
     "tokenizer.json is not JSON"),
    ("tokenizer-tiktoken", lambda p: tokenizer_json(p, b"IQ== 0\nIg== 1\n"), 1, "is not JSON"),
    ("tokenizer-deep", lambda p: tokenizer_json(p, b"[" * 99_999), 1, "is not JSON"),
    ("tokenizer-deep-within", lambda p: tokenizer_json(
        p, b'{"model": {"vocab": {}, "x": ' + b"[" * 300 + b"]" * 300 + b"}}"
    ), 1, "tokenizer.json cannot be used"),
    ("tokenizer-list", lambda p: tokenizer_json(p, []), 1, "is not an object"),
    ("tokenizer-object", lambda p: tokenizer_json(p, {}), 1, "is no tokenizer.json"),
    ("tokenizer-odd-model", lambda p: tokenizer_json(p, model(type="Psychic")), 1,
     "tokenizer.json cannot be used"),
    ("tokenizer-odd-vocab", lambda p: tokenizer_json(p, model(vocab=7)), 1, "is no tokenizer.json"),
    ("tokenizer-no-tokens", lambda p: tokenizer_json(p, model(vocab={})), 1, "has no tokens"),
    ("tokenizer-huge-id", lambda p: tokenizer_json(p, model(vocab={"a": 2**32 - 1})), 1,
     "the id 4294967295, beyond"),
    ("tokenizer-other-id", lambda p: tokenizer_json(p, model() | {"added_tokens": [
        {"id": 5, "content": ESCAPE, "special": True, "normalized": False, "lstrip": False,
         "rstrip": False, "single_word": False}
    ]}), 1, r"31m' the id 5, where it can only be 1"),
    ("tokenizer-panics", lambda p: tokenizer_json(p, model() | {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    }), 1, "tokenizer.json cannot be used (Precompiled"),
    ("tokenizer-no-unk", lambda p: tokenizer_json(p, model(
        type="WordLevel", unk_token="?"
    )), 1, "a.txt holds, before byte 243, what"),
    ("tokenizer-no-separator", lambda p: tokenizer_json(p, model(), "--separator", "eot"), 2,
     "give --separator none"),
    ("tokenizer-config-damaged", lambda p: [
        file_with(p, "{", "tokenizer_config.json"), *tokenizer_json(p, model())
    ][1:], 1, "tokenizer_config.json is not JSON"),
    ("inspect-tokenizer-alone", lambda p: ["inspect", full(p), "--tokenizer", "gpt2"], 2,
     "--tokenizer has no effect without --window"),
    ("inspect-other-tokenizer", lambda p: [
        "inspect", full(p), "--window", 0, "--tokenizer", "gpt2"
    ], 1, "--tokenizer 'gpt2' is not the tokenizer 'cl100k_base'"),
    ("export-escape", lambda p: job(p, "--export", ESCAPE), 2, r"\x1b]0;owned"),
    ("positions", lambda p: job(p, "--positions", "alibi"), 2, "'alibi'"),
    ("endless-windows", lambda p: job(p, "--sampling", "random", "--batches", 10**18), 1, "disk"),
    ("bench-tokens", lambda p: ["bench", "--tokens", 2**31], 2, "'--tokens': 2147483648"),
    ("bench-width", lambda p: ["bench", "--d-model", 4], 2, "--d-model 4"),
    ("bench-heads", lambda p: ["bench", "--d-model", 64, "--heads", 5], 2, "--heads 5"),
    ("bench-huge-width", lambda p: ["bench", "--d-model", HUGE], 2, "--d-model"),
    ("bench-rounds", lambda p: ["bench", "--rounds", 0], 2, "--rounds"),
    ("bench-length", lambda p: ["bench", "--context-length", 10**6], 2, "--tokens 65536"),
    ("bench-scratch", lambda p: ["bench", "--scratch", p.folder / "no"], 2, "does not exist"),
    ("bench-scratch-alone", lambda p: ["bench", "--scratch", p.folder], 2, "--scratch has no"),
    ("bench-tf32", lambda p: ["bench", "--tf32", "--dtype", "float16"], 2, "--tf32 has no effect"),
    ("bench-corpus", lambda p: ["bench", p.folder / "no.txt"], 1, "no.txt could not be read"),
    ("bench-few-tokens", lambda p: ["bench", corpus(p)], 2, "too few for --context-length 1024"),
    ("config-fifo", lambda p: job(p, "--config", made(p, "j", os.mkfifo)), 2, "not a regular file"),
    ("config-device", lambda p: job(p, "--config", "/dev/zero"), 2, "/dev/zero is not a regular"),
    ("config-folder", lambda p: job(p, "--config", p.folder), 2, "is not a regular file"),
    ("config-large", lambda p: config(p, b"#" * (2 << 20)), 2, "has more than 1048576 bytes"),
    ("config-deep", lambda p: config(p, "a = " + "[" * 50_000), 2, "job.toml could not be read"),
    ("config-deep-tables", lambda p: config(p, "a = " + "{a=" * 9999), 2, "job.toml could not be"),
    ("config-digits", lambda p: config(p, "heads = " + "9" * 9999), 2, "job.toml could not be"),
    ("config-huge", lambda p: config(p, f"stride = {HUGE}"), 2, "is not below 2^63"),
    ("config-infinite", lambda p: config(p, "heads = inf"), 2, "a whole number, not inf"),
    ("config-date", lambda p: config(p, "seed = 1979-05-27"), 2, "'seed' takes a whole number"),
    ("config-not-utf8", lambda p: config(p, b"heads = '\xff'"), 2, "job.toml could not be read"),
    ("config-key-escape", lambda p: config(p, '"\\u001b[31m" = 1'), 2, r"'\x1b[31m' is not an opt"),
    ("config-escape", lambda p: config(p, 'dtype = "\\u001b[31m"'), 2, r"\x1b[31m"),
    ("config-nul", lambda p: config(p, r'weights = "a\u0000b"'), 2, "holds a NUL"),
    ("config-nul-corpus", lambda p: [
        "run", "--out", p.out, "--config", file_with(p, r'corpus = ["a\u0000b"]', "job.toml")
    ], 2, "holds a NUL"),
    ("config-in-config", lambda p: config(p, "config = 'other.toml'"), 2, "'config' is not an opt"),
    ("config-long-value", lambda p: config(p, f"heads = '{'x' * 99_999}'"), 2, "a whole number"),
    ("config-nested-list", lambda p: config(p, "export = [['qkv']]"), 2, "takes a string"),
    ("config-twice", lambda p: config(p, "heads = 1\nheads = 2"), 2, "job.toml could not be read"),
]  # fmt: skip


CORPORA: list[Case] = [
    ("zeros", lambda p: job_on(p, "/dev/zero"), 1, "/dev/zero is not a regular file"),
    ("fifo", lambda p: job_on(p, made(p, "f.txt", os.mkfifo)), 1, "f.txt is not a regular file"),
    ("fifo-within", lambda p: job_on(p, folder_with(p, "f.txt", os.mkfifo)), 1, "f.txt is not a"),
    ("socket-within", lambda p: job_on(p, folder_with(p, "s.txt", listening)), 1, "s.txt is not a"),
    ("device-within", lambda p: job_on(
        p, folder_with(p, "z.txt", lambda f: f.symlink_to("/dev/zero"))
    ), 1, "z.txt is not a regular file"),
    ("link-to-nothing", lambda p: job_on(
        p, folder_with(p, "l.txt", lambda f: f.symlink_to("gone"))
    ), 1, "l.txt could not be read: No such file"),
    ("link-to-itself", lambda p: job_on(
        p, folder_with(p, "l.txt", lambda f: f.symlink_to("l.txt"))
    ), 1, "l.txt could not be read: Too many levels"),
    ("fifo-for-plan", lambda p: job_on(
        p, folder_with(p, "f.txt", os.mkfifo), command="plan"
    ), 1, "f.txt is not a regular file"),
    ("fifo-for-bench", lambda p: ["bench", folder_with(p, "f.txt", os.mkfifo)],
     1, "f.txt is not a"),
    ("utf-16", lambda p: job_on(p, file_with(p, TEXT.encode("utf-16"))), 1, "bad.txt is binary"),
    ("utf-16-letters", lambda p: job_on(p, file_with(p, "雪".encode("utf-16"))),
     1, "byte 0 is 0xff"),
    ("latin-1", lambda p: job_on(p, file_with(p, "café ".encode("latin-1") * 99)), 1, "0xe9"),
    ("surrogates", lambda p: job_on(p, file_with(p, b"ab\xed\xa0\x80")), 1, "byte 2 is 0xed"),
    ("overlong", lambda p: job_on(p, file_with(p, b"ab\xc0\xaf")), 1, "byte 2 is 0xc0"),
    ("cut-character", lambda p: job_on(p, file_with(p, "ab雪".encode()[:-1])), 1, "byte 2 is 0xe9"),
    ("gzip", lambda p: job_on(p, file_with(p, b"\x1f\x8b\x08\x01" + b"\xff" * 99)), 1,
     "bad.txt is gzip, but its name does not say so; let it end in .gz"),
    ("nul-under-replace", lambda p: job_on(
        p, file_with(p, b"a" * 99 + b"\0"), "--text-errors", "replace"
    ), 1, "byte 99 is NUL"),
    ("hidden-only", lambda p: job_on(p, file_with(p, TEXT, "h/.a.txt").parent), 1,
     "h holds no file of a kind that is read"),
    ("no-suffix", lambda p: job_on(p, file_with(p, TEXT, "A")), 1, "A is not of a kind that is"),
    ("name-escape", lambda p: job_on(p, file_with(p, b"\xff", f"{ESCAPE}.txt")),
     1, r"\x1b]0;owned"),
    ("name-c1", lambda p: job_on(p, file_with(p, b"\xff", "a\x9b31m.txt")),
     1, r"a\x9b31m.txt is not"),
    ("name-turned", lambda p: job_on(p, file_with(p, b"\xff", "a\u202etxt.exe.txt")),
     1, r"a\u202etxt"),
    ("name-lines", lambda p: job_on(p, file_with(p, b"\xff", "a\nError: b.txt")),
     1, "a Error: b.txt"),
    ("name-not-utf8", lambda p: job_on(
        p, file_with(p, b"\xff", os.fsdecode(b"a\xfe.txt"))
    ), 1, r"a\udcfe.txt is not UTF-8"),
    ("million-spaces", lambda p: job_on(
        p, file_with(p, "a" + " " * 10**6), "--tokenizer", "o200k_base"
    ), 1, "bad.txt holds, before byte 1000001, a run of white space too long for o200k_base"),
    ("million-spaces-and-more", lambda p: job_on(
        p, file_with(p, " " * 10**6 + "a"), command="plan"
    ), 1, "a run of white space too long for cl100k_base"),
    ("endless-line", lambda p: job_on(
        p, file_with(p, "a" * (18 << 20))
    ), 1, "bad.txt holds, from byte 0 on, 16,777,216 bytes without a place to cut"),
    ("file-as-folder", lambda p: job_on(p, corpus(p) / "b.txt"), 1, "Not a directory"),
    ("short-for-random", lambda p: job(
        p, "--context-length", 4096, "--sampling", "random"
    ), 1, "need 4097"),
]  # fmt: skip


WEIGHTS: list[Case] = [
    ("no-bytes", lambda p: weights_job(p, file_with(p, b"", "w.safetensors")), 1, "it has 0 bytes"),
    ("seven-bytes", lambda p: weights_job(p, file_with(p, b"1234567")), 1, "it has 7 bytes"),
    ("pickle", lambda p: weights_job(p, file_with(p, pickle.dumps([1]))), 1, "is a pickle"),
    ("archive", lambda p: weights_job(p, file_with(p, b"PK\x03\x04" + b"0" * 99)),
     1, "is a pickle"),
    ("pickle-by-name", lambda p: weights_job(p, file_with(p, b"0" * 99, "w.pth")),
     1, "is a pickle"),
    ("index", lambda p: weights_job(
        p, file_with(p, '{"weight_map": {"a": "../../b.safetensors"}}', "w.index.json")
    ), 1, "w.index.json is not a safetensors file"),
    ("weights-folder", lambda p: weights_job(p, p.folder), 1, "tokenizer.json; nor a config.json"),
    ("weights-fifo", lambda p: weights_job(p, made(p, "w", os.mkfifo)), 1, "is not a regular file"),
    ("weights-device", lambda p: weights_job(p, "/dev/zero"), 1, "is not a regular file"),
    ("weights-loop", lambda p: weights_job(
        p, made(p, "w", lambda f: f.symlink_to(f))
    ), 1, "Too many levels"),
    ("header-2^64", lambda p: weights_job(p, file_with(p, b"\xff" * 64)),
     1, "header of 1844674407"),
    ("header-beyond", lambda p: weights_job(p, file_with(p, b"\x99" + bytes(9))),
     1, "header of 153"),
    ("header-deep", lambda p: headed(p, b'{"a":' * 99_999), 1, "damaged safetensors header"),
    ("header-digits", lambda p: headed(p, b'{"a":' + b"9" * 9999 + b"}"), 1, "damaged safetensors"),
    ("header-nan", lambda p: headed(p, b'{"a":NaN}'), 1, "damaged safetensors header"),
    ("header-list", lambda p: headed(p, [1]), 1, "it is not an object"),
    ("header-many", lambda p: headed(
        p, {f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(50_000)}
    ), 1, "lacks the tensor embedding.weight"),
    ("name-escapes", lambda p: weights(p, **{ESCAPE: torch.ones(1)}), 1, r"\x1b]0;owned"),
    ("name-half", lambda p: headed(
        p, b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"
    ), 1, "lacks the tensor"),
    ("name-path", lambda p: weights(p, **{"../../x": torch.ones(1)}), 1, "holds '../../x'"),
    ("name-long", lambda p: weights(p, **{"n" * 10**6: torch.ones(1)}), 1, "which is none of"),
    ("shape-product", lambda p: headed(
        p, {"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}
    ), 1, "beyond any file's size"),
    ("shape-bomb", lambda p: headed(
        p, {"a": entry(shape=[2**62] * 10**6, offsets=[0, 0])}
    ), 1, "1000000 dimensions"),
    ("shape-ones", lambda p: headed(
        p, {"a": entry(shape=[1] * 65)}, b"1234"
    ), 1, "'a' has 65 dimensions, more than 64"),
    ("shape-fraction", lambda p: headed(p, {"a": entry(shape=[1.0])}, b"1234"), 1, "whole numbers"),
    ("offsets-one", lambda p: headed(p, {"a": entry(offsets=[4])}, b"1234"), 1, "whole numbers"),
    ("offsets-back", lambda p: headed(p, {"a": entry(offsets=[4, 0])}, b"1234"), 1, "-4 bytes"),
    ("offsets-beyond", lambda p: headed(
        p, {"a": entry(offsets=[2**62, 2**62 + 4])}, b"1234"
    ), 1, "leave a gap"),
    ("dtype-list", lambda p: headed(p, {"a": entry(dtype=["F32"])}, b"1234"),
     1, "dtype \"['F32']\""),
    ("dtype-integer", lambda p: weights(
        p, embedding__weight=torch.ones(9, 8, dtype=torch.int32)
    ), 1, "embedding.weight is int32"),
    ("dtypes-mixed", lambda p: weights(
        p, q_proj__weight=torch.ones(8, 8, dtype=torch.float16)
    ), 1, "mixes the dtypes"),
    ("no-rows-but-wide", lambda p: weights(
        p, {"heads": 4, "positions": "sinusoidal"}, embedding__weight=torch.empty(0, 2**40)
    ), 1, "embedding.weight is not a matrix with rows"),
    ("no-width", lambda p: weights(p, embedding__weight=torch.ones(9, 0)),
     1, "embedding.weight is"),
    ("position-number", lambda p: weights(
        p, position__weight=torch.tensor(1.0)
    ), 1, "position.weight is not a matrix"),
    ("position-list", lambda p: weights(p, position__weight=torch.ones(99)), 1, "position.weight"),
    ("position-empty", lambda p: weights(p, position__weight=torch.ones(0, 8)),
     1, "position.weight"),
    ("position-width", lambda p: weights(
        p, position__weight=torch.ones(99, 7)
    ), 1, "position.weight has shape [16, 7]"),
    ("bias-matrix", lambda p: weights(
        p, q_proj__bias=torch.ones(8, 1)
    ), 1, "q_proj.bias has shape [8, 1]"),
    ("not-finite", lambda p: weights(
        p, k_proj__weight=torch.full((8, 8), torch.inf)
    ), 1, "k_proj.weight holds NaN or infinity"),
    ("scalars-deep", lambda p: weights(p, '{"a":' * 99_999), 1, "is not JSON"),
    ("scalars-digits", lambda p: weights(p, '{"heads":' + "9" * 9999 + "}"), 1, "is not JSON"),
    ("scalars-list", lambda p: weights(p, "[4]"), 1, "is not a JSON object"),
    ("heads-none", lambda p: weights(p, {"heads": 0}), 1, "heads = 0"),
    ("heads-half", lambda p: weights(p, {"heads": 4.0}), 1, "heads = 4.0"),
    ("heads-many", lambda p: weights(p, {"heads": 10**4000}), 1, "cannot be split into"),
    ("heads-apart", lambda p: weights(p, {"heads": 3}), 1, "cannot be split into 3 heads"),
    ("kv-heads-apart", lambda p: weights(p, {"heads": 4, "kv_heads": 3}), 1, "cannot share 3"),
    ("eps-nan", lambda p: weights(p, '{"heads": 4, "eps": NaN}'), 1, "eps = nan"),
    ("eps-negative", lambda p: weights(p, {"heads": 4, "eps": -1e-5}), 1, "eps = -1e-05"),
    ("scale-infinite", lambda p: weights(
        p, '{"heads": 4, "embedding_scale": 1e999}'
    ), 1, "embedding_scale = inf"),
    ("scale-digits", lambda p: weights(
        p, {"heads": 4, "embedding_scale": 10**400}
    ), 1, "embedding_scale = 1000"),
    ("scalar-escape", lambda p: weights(p, {"heads": 4, "norm": ESCAPE}), 1, r"\x1b]0;owned"),
]  # fmt: skip


EXPORTS: list[Case] = [
    ("open-file", lambda p: ["open", corpus(p)], 1, "a.txt is not a folder"),
    ("inspect-file", lambda p: ["inspect", corpus(p)], 1, "a.txt is not a folder"),
    ("unfinished", lambda p: ["open", p.folder], 1, "no finished export"),
    ("manifest-fifo", lambda p: ["verify", swapped(full(p), "manifest.json", os.mkfifo)], 1,
     "manifest.json is not a regular file"),
    ("manifest-folder", lambda p: ["inspect", swapped(full(p), "manifest.json", os.mkdir)], 1,
     "manifest.json is not a regular file"),
    ("manifest-device", lambda p: [
        "inspect", swapped(full(p), "manifest.json", lambda f: f.symlink_to("/dev/zero"))
    ], 1, "manifest.json is a link that leads out"),
    ("manifest-link", lambda p: ["open", linked_out(p, full(p), "manifest.json")], 1, "leads out"),
    ("manifest-loop", lambda p: [
        "verify", swapped(full(p), "manifest.json", lambda f: f.symlink_to(f.name))
    ], 1, "is a link, not a file of the export"),
    ("manifest-deep", lambda p: ["inspect", manifest_text(full(p), "[" * 99_999)], 1, "not JSON"),
    ("manifest-digits", lambda p: ["open", manifest_text(full(p), "9" * 9999)], 1, "not JSON"),
    ("manifest-nan", lambda p: ["open", manifest_text(full(p), "NaN")], 1, "NaN is no number"),
    ("manifest-utf16", lambda p: ["verify", manifest_text(full(p), "{}".encode("utf-16"))], 1,
     "not JSON"),
    ("manifest-other", lambda p: ["expand", manifest_text(compact(p), "{}"), "--out", p.out], 1,
     "is not the manifest of an export"),
    ("version-text", lambda p: ["open", manifest(full(p), "format_version", ESCAPE)], 1,
     "format version '"),
    ("version-list", lambda p: ["inspect", manifest(full(p), "format_version", [9] * 9999)], 1,
     "format version ["),
    *[
        (f"name-{label}", lambda p, name=name: ["verify", manifest(full(p), "files.0.name", name)],
         1, "is not one of an export")
        for label, name in {
            "up": "../x.safetensors", "root": "/x.safetensors", "within": "a/../b.safetensors",
            "double": "a//b.safetensors", "dot": "./a.safetensors", "nul": "a\0.safetensors",
            "kind": "tokens/a.bin", "nothing": "", "escapes": f"{ESCAPE}.safetensors",
            "turned": "\u202ea.safetensors", "line": "a\n.safetensors",
        }.items()
    ],
    ("name-half", lambda p: ["open", manifest(full(p), "files.0.name", "\ud800.safetensors")], 1,
     "manifest.json is damaged"),
    ("name-markup", lambda p: ["verify", manifest(full(p), "files.0.name", "[/b].safetensors")], 1,
     "[/b].safetensors"),
    ("name-long", lambda p: [
        "verify", manifest(full(p), "files.0.name", "n" * 999 + ".safetensors")
    ], 1, "safetensors with the hash in manifest.json"),
    *[
        (f"{command}-{place}-{label}",
         lambda p, command=command, place=place, value=value: [
             command, manifest(full(p) if command != "expand" else compact(p), place, value),
             *(["--out", p.out] if command == "expand" else []),
         ], 1, f"manifest.json is damaged: {culprit or place}" if culprit != "" else "damaged")
        for command, place, label, value, culprit in [
            ("open", "windows.count", "huge", HUGE, None),
            ("open", "windows.count", "negative", -1, None),
            ("open", "windows.count", "true", True, None),
            ("inspect", "windows.count", "half", 1.5, None),
            ("verify", "windows.count", "none", None, None),
            ("open", "windows.context_length", "zero", 0, None),
            ("expand", "windows.context_length", "huge", HUGE, None),
            ("expand", "windows.stride", "zero", 0, None),
            ("expand", "windows.stride", "text", "1", None),
            ("expand", "windows.dropped_tokens", "list", [], None),
            ("verify", "tokens.count", "huge", HUGE, None),
            ("inspect", "tokens.documents", "text", ESCAPE, None),
            ("expand", "tokens.distinct", "none", None, None),
            ("expand", "job.artifact", "other", "half", None),
            ("open", "job.dtype", "other", "float8", None),
            ("open", "job.dtype", "list", [], None),
            ("inspect", "job.layout", "other", "thbd", None),
            ("open", "job.export", "text", "qkv", None),
            ("open", "job.export", "other", ["logits"], None),
            ("expand", "job.shard_size", "zero", 0, None),
            ("expand", "job.batch_size", "negative", -8, None),
            ("inspect", "corpus.bytes", "text", "many", None),
            ("inspect", "corpus.files", "numbers", [1], None),
            ("open", "layer.heads", "zero", 0, None),
            ("open", "layer.d_model", "huge", HUGE, None),
            ("inspect", "layer.eps", "infinite", "inf", None),
            ("open", "layer", "null", None, None),
            ("inspect", "compute.device", "number", 7, None),
            ("expand", "compute.method_reason", "list", [1], None),
            ("inspect", "tokenizer.name", "number", 7, None),
            ("open", "expand", "number", 7, None),
            ("open", "files", "object", {"a": 1}, ""),
            ("open", "files", "number", 7, ""),
            ("verify", "files.0.bytes", "huge", HUGE, ""),
            ("verify", "files.0.tensors", "list", [1], ""),
            ("verify", "files.0.tensors.input_ids.shape", "text", "many", ""),
            ("verify", "files.0.kind", "number", 7, ""),
        ]
    ],
    *[
        (f"without-{place}",
         lambda p, place=place: ["expand", manifest(compact(p), place, DROP), "--out", p.out], 1,
         "manifest.json is damaged")
        for place in ("job", "job.artifact", "windows.count", "layer.heads", "tokens.documents",
                      "compute.method_reason", "corpus.files", "expand", "files")
    ],
    ("tokenizer-unknown", lambda p: [
        "report", manifest(full(p), "tokenizer.name", "gpt9")
    ], 1, "the tokenizer 'gpt9', which is not known"),
    ("tokenizer-other", lambda p: [
        "report", manifest(full(p), "tokenizer.name", "gpt2")
    ], 1, "another vocabulary under the name gpt2"),
    ("window-beyond", lambda p: ["inspect", full(p), "--window", 10**9], 1, "--window 1000000000"),
    ("window-negative", lambda p: ["inspect", full(p), "--window", -1], 1, "--window -1"),
    ("fewer-windows", lambda p: ["open", manifest(full(p), "windows.count", 2**62)], 1,
     "no shard holds"),
    ("far-windows", lambda p: ["open", manifest(compact(p), "windows.count", 2**62)], 1,
     "windows begin beyond"),
    ("wide-stride", lambda p: ["open", manifest(compact(p), "windows.stride", 2**62)], 1,
     "windows begin beyond"),
    ("long-windows", lambda p: ["open", manifest(compact(p), "windows.context_length", 10**15)], 1,
     "windows begin beyond"),
    ("no-starts", lambda p: ["open", manifest(compact(p), "windows.stride", None)], 1,
     "names no windows.safetensors"),
    ("wide-layer", lambda p: ["open", manifest(compact(p), "layer.head_dim", 2**40)], 1,
     "has other widths than tables.safetensors"),
    ("wide-features", lambda p: ["open", manifest(compact(p), "layer.d_model", 2**40)], 1,
     "another d_model than weights.safetensors"),
    ("wide-shard", lambda p: ["open", manifest(full(p), "layer.d_model", 2**40)], 1,
     "holds other tensors than it should"),
    ("other-tokens", lambda p: ["open", manifest(compact(p), "tokens.count", 5)], 1,
     "tokens, not as many"),
    ("token-part-apart", lambda p: ["open", manifest(compact(p), "files.0.first", 5)], 1,
     "is no next part of the tokens"),
    ("shard-fifo", lambda p: ["open", swapped(full(p), "shards/*", os.mkfifo)], 1,
     "is not a regular file"),
    ("shard-fifo-inspected", lambda p: [
        "inspect", swapped(full(p), "shards/*", os.mkfifo), "--window", 0
    ], 1, "is not a regular file"),
    ("shard-fifo-verified", lambda p: ["verify", swapped(full(p), "shards/*", os.mkfifo)], 1,
     "is a special file, not a file"),
    ("shard-folder", lambda p: ["open", swapped(full(p), "shards/*", os.mkdir)], 1,
     "is not a regular file"),
    ("shard-linked-out", lambda p: ["open", linked_out(p, full(p), "shards/*")], 1, "leads out"),
    ("shard-gone", lambda p: ["open", swapped(full(p), "shards/*", lambda f: None)], 1, "No such"),
    ("shard-cut", lambda p: ["open", swapped(
        full(p), "shards/*", lambda f: shutil.copy(p.exported / "SHA256SUMS", f)
    )], 1, "is not a safetensors file"),
    ("shards-exchanged", lambda p: ["open", swapped(
        full(p), "shards/*", lambda f: shutil.copy(sorted(f.parent.iterdir())[-1], f)
    )], 1, "holds other tensors"),
    ("shard-of-weights", lambda p: ["open", swapped(
        full(p), "shards/*", lambda f: shutil.copy(f.parent.parent / "weights.safetensors", f)
    )], 1, "holds other tensors"),
    ("window-before", lambda p: ["inspect", shard_starts(full(p), -5), "--window", 0], 1,
     "window 0 begins beyond"),
    ("window-after", lambda p: ["inspect", shard_starts(full(p), 2**62), "--window", 0], 1,
     "window 0 begins beyond"),
    ("no-such-document", lambda p: [
        "inspect", stream(full(p), document_starts=lambda s: s + 10**9), "--window", 0
    ], 1, "of a document that the manifest lacks"),
    ("no-such-token", lambda p: [
        "inspect", stream(full(p), input_ids=lambda ids: ids - 10**6), "--window", 0
    ], 1, "damaged"),
    ("token-without-row", lambda p: ["open", stream(compact(p), input_ids=lambda ids: ids + 10**8)],
     1, "none of them for token"),
    ("token-negative", lambda p: ["open", stream(compact(p), input_ids=lambda ids: ids - 10**8)],
     1, "none of them for token -"),
    ("tables-fifo", lambda p: ["open", swapped(compact(p), "tables.safetensors", os.mkfifo)], 1,
     "tables.safetensors is not a regular file"),
    ("tables-linked-out", lambda p: ["open", linked_out(p, compact(p), "tables.safetensors")], 1,
     "leads out"),
    ("weights-linked-out", lambda p: ["open", linked_out(p, compact(p), "weights.safetensors")], 1,
     "leads out"),
    ("weights-pickle", lambda p: ["open", swapped(
        compact(p), "weights.safetensors", lambda f: f.write_bytes(pickle.dumps([1]))
    )], 1, "weights.safetensors is not a safetensors file"),
    ("tables-no-heads", lambda p: ["open", tables(compact(p), {"heads": 0, "kv_heads": 0})], 1,
     "heads are no whole numbers"),
    ("tables-half-heads", lambda p: ["open", tables(compact(p), {"heads": 1e308, "kv_heads": 1})],
     1,
     "heads are no whole numbers"),
    ("tables-minus-heads", lambda p: ["open", tables(compact(p), {"heads": -2, "kv_heads": 1})], 1,
     "heads are no whole numbers"),
    ("tables-deep", lambda p: ["open", tables(compact(p), "[" * 99_999)],
     1, "does not hold tables"),
    ("tables-list", lambda p: ["open", tables(compact(p), "[1]")], 1, "does not hold tables"),
    ("tables-one-dimension", lambda p: ["open", tables(
        compact(p), token_table=lambda t: t.flatten()
    )], 1, "does not hold tables"),
    ("tables-of-halves", lambda p: ["open", tables(
        compact(p), token_table=lambda t: t.half()
    )], 1, "do not fit together"),
    ("tables-without-rows", lambda p: ["open", tables(
        compact(p), token_table=lambda t: t[:, :0].clone(), token_ids=lambda t: t[:0].clone()
    )], 1, "do not fit together"),
    ("tables-without-ids", lambda p: ["open", tables(compact(p), token_ids=None)], 1,
     "do not fit together"),
    ("tables-of-more", lambda p: ["open", tables(compact(p), other=torch.ones(3))], 1,
     "do not fit together"),
    ("tables-half-a-norm", lambda p: ["open", tables(compact(p), constant=torch.ones(96))], 1,
     "does not hold tables"),
    ("tables-descending", lambda p: ["open", tables(
        compact(p), token_ids=lambda t: t.flip(0)
    )], 1, "token_ids do not ascend"),
    ("tables-negative", lambda p: ["open", tables(
        compact(p), token_ids=lambda t: t - 10**6
    )], 1, "token_ids do not ascend from 0"),
    ("tables-of-2^31", lambda p: ["open", tables(
        compact(p), token_ids=lambda t: t + (2**31 - 10**6)
    )], 1, "beyond any vocabulary"),
    ("few-positions", lambda p: ["open", tables(
        compact(p), position_table=lambda t: t[:, :15].clone()
    )], 1, "16 tokens a window, but 15 positions"),
    ("expand-full", lambda p: ["expand", full(p), "--out", p.out], 1, "is a full export already"),
    ("expand-onto-itself", lambda p: ["expand", export := compact(p), "--out", export], 1,
     "is the compact export itself"),
    ("expand-damaged", lambda p: [
        "expand", stream(compact(p), input_ids=lambda ids: ids + 1), "--out", p.out
    ], 1, "is damaged: its bytes do not match"),
    ("verify-damaged", lambda p: [
        "verify", stream(full(p), input_ids=lambda ids: ids + 1)
    ], 1, "tokens-00001.safetensors"),
]  # fmt: skip
KINDS = {"options": OPTIONS, "corpus": CORPORA, "weights": WEIGHTS, "export": EXPORTS}
BAD: list[Case] = [
    (f"{kind}-{name}", make, status, culprit)
    for kind, cases in KINDS.items()
    for name, make, status, culprit in cases
]


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """What waits for a FIFO, or goes on for ever, fails instead."""

    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(_exported: Path, _features: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, _exported, _features)


@pytest.fixture(scope="session")
def _features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.mktemp("features"), "--artifact", "compact")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder but OUT, with what tells that it was written to."""
    found = {}
    for path in folder.rglob("*"):
        if path.parts[len(folder.parts)] != "out":
            status = path.lstat()
            found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def call(arguments: Arguments) -> Result:
    """The command line, or for `open` the windows of an export, whose error becomes a line."""
    if arguments[0] != "open":
        return qkvmill(*arguments)
    try:
        export = open_export(arguments[1])
        for index in range(len(export)):
            export[index]
        list(export.batches(5))
    except QkvmillError as error:
        return Result(1, "", f"Error: {error}\n")
    return Result(0, "", "")


def test_there_are_enough_bad_inputs() -> None:
    assert len({case[0] for case in BAD}) == len(BAD) >= 120


@pytest.mark.parametrize(
    ("make", "status", "culprit"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
def test_a_bad_input_is_one_line(place: Place, make: Make, status: int, culprit: str) -> None:
    arguments = make(place)
    before = contents(place.folder)
    result = call(arguments)
    assert status == result.status, result.stderr
    *said, error = result.stderr.split("\n")[:-1]
    assert error.startswith("Error: ")
    assert culprit in error
    assert not any(line.startswith(("Error", "Traceback")) for line in said)
    assert len(error) < 2100 or arguments[0] == "open"
    assert UNSEEN.search(result.stdout + result.stderr) is None or arguments[0] == "open"
    assert before == contents(place.folder)
    assert not (place.out / "manifest.json").exists()
    assert not place.out.exists()


def test_what_looks_like_markup_is_shown_as_it_is(place: Place) -> None:
    export = manifest(full(place), "files.0.name", "[/b].safetensors")
    named = place.folder / "x[" / "b]"
    named.parent.mkdir()
    shown = qkvmill("inspect", shutil.move(export, named))
    assert shown.status == 0
    assert "[/b].safetensors" in shown.stdout
    assert "x[/b]" in shown.stdout


def test_escapes_of_a_corpus_do_not_reach_the_terminal(place: Place) -> None:
    text = f"A tab\t, an escape {ESCAPE}, C1 \x9b31m and \x7f. " * 9
    folder = write_corpus(place.folder / "texts", **{f"a{ESCAPE}": text})
    assert qkvmill("run", folder, "--out", place.out, *SMALL).status == 0
    for more in ([], ["--window", 1], ["--json"], ["--window", 1, "--json"]):
        shown = qkvmill("inspect", place.out, *more)
        assert shown.status == 0, shown.stderr
        assert UNSEEN.search(shown.stdout) is None
        assert "--json" not in more or shown.json


def shell(line: str, cwd: Path, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """A line of shell in an odd environment; None takes a variable away."""
    changed = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable, **variables}
    environment = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip


RUN = '"$PY" -m jobs run corpus --out out --context-length 16 --d-model 32 --heads 4'
ODD: list[tuple[str, str, dict[str, str | None], int, str]] = [
    ("no-home", RUN, {"HOME": None, "USER": None, "LOGNAME": None}, 0, ""),
    ("odd-home", RUN, {"HOME": "/proc/nowhere"}, 0, ""),
    ("no-tmpdir", RUN, {"TMPDIR": "/nowhere"}, 0, ""),
    ("threads", RUN, {"OMP_NUM_THREADS": "garbage", "MKL_NUM_THREADS": "-3"}, 0, ""),
    ("terminal", RUN, {"TERM": "garbage", "COLUMNS": "0", "LINES": "x"}, 0, ""),
    ("locale", RUN, {"LC_ALL": "garbage", "LANG": "garbage", "PYTHONUTF8": "0"}, 0, ""),
    ("no-gpu", f"{RUN} --device cuda", {"CUDA_VISIBLE_DEVICES": "garbage"}, 1, "no CUDA device"),
    ("ascii", f"{RUN}; cp corpus/a.txt 雪.txt; printf '\\377' > 雪.txt; "
     '"$PY" -m jobs plan 雪.txt --out x', {"PYTHONIOENCODING": "ascii"}, 1,
     "雪.txt is not UTF-8"),
    ("full-stdout", f"{RUN} --json > /dev/full", {}, 1, "No space left on device"),
    ("no-stdin", f"{RUN} <&-", {}, 0, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "variables", "status", "culprit"),
    [pytest.param(*case[1:], id=case[0]) for case in ODD],
)
def test_an_odd_environment_stops_no_job_or_is_one_line(
    tmp_path: Path, line: str, variables: dict[str, str | None], status: int, culprit: str
) -> None:
    write_corpus(tmp_path / "corpus", a=TEXT)
    done = shell(line, tmp_path, **variables)
    assert status == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    errors = [said for said in done.stderr.splitlines() if said.startswith("Error: ")]
    assert len(errors) == (status != 0)
    assert all(culprit in said for said in errors)
