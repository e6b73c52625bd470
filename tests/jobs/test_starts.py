from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporters.folder import claimed
from exporters.tokens import TokenStream, TokenWriter
from jobs.config import JobConfig
from jobs.progress import Reporter
from jobs.starts import write_starts
from jobs.windows import plan_windows

STARTS = "windows.safetensors"
LENGTHS = [9, 1, 4]


def config(root: Path, **options: Any) -> JobConfig:
    given: dict[str, Any] = {"corpus": ("a.txt",), "context_length": 4}
    return JobConfig(**given, out=root, **options)


def stream_at(root: Path) -> TokenStream:
    writer = TokenWriter(root, part_tokens=6)
    for length in LENGTHS:
        writer.append(np.arange(length), np.array([0]))
    return TokenStream(root, writer.close())


@pytest.mark.parametrize("artifact", ["full", "compact"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, None, id="ignore"),
        pytest.param({"tail": "pad"}, None, id="pad"),
        pytest.param({"boundaries": "split"}, {"window_start": [0, 4]}, id="split"),
        pytest.param(
            {"boundaries": "split", "tail": "pad"},
            {"window_start": [0, 4, 10], "window_pairs": [4, 4, 3]},
            id="split-pad",
        ),
    ],
)
def test_starts_are_written_where_no_stride_tells_them(
    tmp_path: Path, artifact: str, options: dict[str, Any], expected: dict[str, list[int]] | None
) -> None:
    job, root = config(tmp_path, artifact=artifact, **options), tmp_path
    with claimed(root, {}, overwrite=False) as work:
        stream = stream_at(root)
        padding = 0 if job.tail == "pad" else None
        plan = plan_windows(job, stream, len(LENGTHS), padding)
        written, entries = write_starts(work, job, plan, stream, Reporter(quiet=True))
        assert (root / STARTS).exists() == bool(entries) == (expected is not None)
        if expected is None:
            assert written == plan
            return
        tensors = load_file(root / STARTS)
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == expected
        assert (entries[0].kind, entries[0].count) == ("starts", plan.count)
        assert written.places(1, plan.count).start.tolist() == expected["window_start"][1:]


@pytest.mark.parametrize(("artifact", "written"), [("full", False), ("compact", True)])
def test_random_starts_of_a_full_export_stand_in_its_shards(
    tmp_path: Path, artifact: str, written: bool
) -> None:
    job = config(tmp_path, artifact=artifact, sampling="random")
    with claimed(tmp_path, {}, overwrite=False) as work:
        stream = stream_at(tmp_path)
        plan = plan_windows(job, stream, len(LENGTHS), None)
        write_starts(work, job, plan, stream, Reporter(quiet=True))
        assert (tmp_path / STARTS).exists() == written
        if written:
            assert torch.equal(
                load_file(tmp_path / STARTS)["window_start"], plan.places(0, 8).start
            )


def test_a_file_that_is_kept_is_not_written_again_unless_it_is_another(tmp_path: Path) -> None:
    job = config(tmp_path, boundaries="split")
    with claimed(tmp_path, {}, overwrite=False) as work:
        stream = stream_at(tmp_path)
        plan = plan_windows(job, stream, len(LENGTHS), None)
        quiet = Reporter(quiet=True)
        _, (entry,) = write_starts(work, job, plan, stream, quiet)
        inode = (tmp_path / STARTS).stat().st_ino
        assert write_starts(work, job, plan, stream, quiet)[1] == [entry]
        assert (tmp_path / STARTS).stat().st_ino == inode
        work.journal.add_file(replace(entry, first=1))
        assert write_starts(work, job, plan, stream, quiet)[1] == [entry]
        assert (tmp_path / STARTS).stat().st_ino != inode
