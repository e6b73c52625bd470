"""What a worker of a cluster refuses."""

import os
import re
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch

from exporters.strays import HOLDER
from jobs import worker
from jobs.encode import EncodeSettings
from jobs.errors import ClusterError
from jobs.hf_tokenizer import load_file
from jobs.inputs.segments import TextPiece
from jobs.tokenizer import load_encoding, tiktoken_encoding
from jobs.versions import versions
from jobs.worker import Computing, Expected
from kernels.dispatch import choose

FLOATS = Computing(device="cpu", dtype=torch.float32, tf32=False)


@pytest.fixture
def expected(tmp_path: Path) -> Expected:
    """What this very process is."""
    (tmp_path / HOLDER).parent.mkdir()
    (tmp_path / HOLDER).write_text("process 1")
    return Expected(
        versions=versions("tiktoken"),
        computing=FLOATS,
        place=choose("cpu", torch.float32).place,
        out=tmp_path,
        holder="process 1",
        scratch=None,
    )


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_a_worker_of_the_same_kind_is_taken(expected: Expected) -> None:
    worker.check(expected)


@pytest.mark.parametrize("name", ["torch", "triton", "safetensors", "tiktoken"])
def test_another_version_is_named_with_the_job_s(expected: Expected, name: str) -> None:
    other = replace(expected, versions={**expected.versions, name: "0.0.1"})
    here = expected.versions[name]
    with pytest.raises(
        ClusterError, match=re.escape(f"it has {name} {here}, the job {name} 0.0.1; ")
    ):
        worker.check(other)


def test_what_is_missing_is_said(expected: Expected) -> None:
    other = replace(expected, versions={**expected.versions, "no-such-package": "2.0"})
    with pytest.raises(ClusterError, match="it has no-such-package not installed, the job"):
        worker.check(other)


def test_our_own_version_comes_along(expected: Expected) -> None:
    worker.check(replace(expected, versions={**expected.versions, "qkvmill": "0.0.1"}))


def test_a_cpu_that_may_give_other_bits_is_refused(expected: Expected) -> None:
    with pytest.raises(ClusterError, match=r"it computes with .* the job with .*AVX9"):
        worker.check(replace(expected, place={"cpu_capability": "AVX9"}))


@pytest.mark.parametrize("seen", [None, "process 2"], ids=["nothing", "another"])
def test_a_node_that_does_not_see_the_export_is_refused(
    expected: Expected, seen: str | None
) -> None:
    assert isinstance(expected.out, Path)
    (expected.out / HOLDER).unlink()
    if seen:
        (expected.out / HOLDER).write_text(seen)
    with pytest.raises(ClusterError, match=r"does not see --out .* as the job does; give a folder"):
        worker.check(expected)


TEXT = "Pack my box with five dozen liquor jugs.\nHow vexingly quick daft zebras jump! \u00e9\u6f22"


def encoded(files: worker.TokenizerFiles) -> list[int]:
    """The ids of TEXT as a worker encodes it."""
    piece = TextPiece(TEXT.encode(), offset=0, begins=True)
    settings = EncodeSettings(None, "text", "strict", 1 << 20)
    (found,) = worker.encode(f"{files.name} {files.vocabulary_sha256}", files, settings, [piece])
    ids: list[int] = found.ids.tolist()
    return ids


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_an_encoding_travels_by_its_name(name: str) -> None:
    files = worker.tokenizer_files(name, load_encoding(name))
    assert files.files is None
    assert encoded(files) == tiktoken_encoding(name)[0].encode_ordinary(TEXT)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_model_s_tokenizer_travels_as_its_files(tmp_path: Path, given: str) -> None:
    folder = tmp_path / "model"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT * 9], tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 3}')
    place = folder if given == "folder" else folder / "tokenizer.json"
    files = worker.tokenizer_files(place, load_file(place))
    shutil.rmtree(folder)  # which another node never had
    assert encoded(files) == inner.encode(TEXT).ids


def test_another_vocabulary_is_refused() -> None:
    files = worker.tokenizer_files("gpt2", load_encoding("gpt2"))
    with pytest.raises(
        ClusterError, match=r"a worker has another vocabulary of gpt2: .* the job 0000"
    ):
        encoded(replace(files, vocabulary_sha256="0" * 64))


def test_a_model_s_tokenizer_has_its_name_in_what_it_says(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))
    (tmp_path / "tok").mkdir()
    inner.save(str(tmp_path / "tok" / "tokenizer.json"))
    files = worker.tokenizer_files(tmp_path / "tok", load_file(tmp_path / "tok"))
    settings = EncodeSettings(None, "text", "strict", 1 << 20)
    piece = TextPiece(b"never seen", offset=0, begins=True)
    (found,) = worker.encode("word level", files, settings, [piece])
    assert "what tok gives up on" in str(found.problem)


def test_folders_of_workers_that_were_killed_go(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = socket.gethostname()
    names = [f"{here}-{gone.pid}-x", f"{here}-{os.getpid()}-x", f"other{here}-{gone.pid}-x"]
    for name in names:
        (tmp_path / f"qkvmill-worker-{name}").mkdir()
    worker._remove_left(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"qkvmill-worker-{name}" for name in names[1:]}


def test_a_scratch_folder_is_needed_on_every_node(expected: Expected, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="it has no folder --scratch"):
        worker.check(replace(expected, scratch=tmp_path / "none"))
