from pathlib import Path
from typing import Any

import pytest

from exporters.bucket import Bucket
from exporters.errors import ExportError
from exporters.space import HEADROOM
from jobs import room
from jobs.config import JobConfig
from jobs.outputs import Sizes
from jobs.room import check_room

SIZES = Sizes(
    token_bytes=100, weight_bytes=20, table_bytes=3000, window_bytes=50_000, shard_bytes=50_000,
    total_bytes=50_120, disk_bytes=53_120,
)  # fmt: skip
FULL = Sizes(**{**vars(SIZES), "disk_bytes": 10**18})


def config(out: Any, scratch: Path | None = None) -> JobConfig:
    return JobConfig(corpus=("a.txt",), out=out, scratch=scratch)


@pytest.mark.parametrize(
    ("shard_bytes", "held"),
    [(1000, 3000), (40_000, 50_000)],
    ids=["some-shards", "all-of-few"],
)
def test_for_a_bucket_only_shards_under_way_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, held: int
) -> None:
    asked = []
    monkeypatch.setattr(room, "check_space", lambda *given, **options: asked.append(given))
    monkeypatch.setattr(room, "shards_under_way", lambda: 3)
    check_room(config(Bucket("s3://bucket/a"), tmp_path), SIZES, shard_bytes, kept=7)
    check_room(config(tmp_path), SIZES, shard_bytes, kept=7)
    in_scratch = (tmp_path, 3120 + held + HEADROOM, 7)
    assert [in_scratch, (tmp_path, 53_120 + HEADROOM, 7)] == asked


def test_the_option_whose_disk_is_too_small_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"--scratch {tmp_path} needs "):
        check_room(config(Bucket("s3://bucket/a"), tmp_path), FULL, 1)
    with pytest.raises(ExportError, match=f"--out {tmp_path} needs "):
        check_room(config(tmp_path), FULL, 1)
