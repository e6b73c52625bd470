"""Whether the files of a job find room on this machine's disk."""

import os
import tempfile
from pathlib import Path

from exporters.bucket import Bucket
from exporters.space import HEADROOM, check_space
from jobs.config import JobConfig
from jobs.outputs import Sizes


def check_room(config: JobConfig, size: Sizes, shard_bytes: int, kept: int = 0) -> None:
    """Raise ExportError if the disk that a job writes to has too few bytes free.

    Of an export that goes to a bucket, all but the shards is held in the scratch folder, and of
    these as many as may be on their way at once.

    Args:
        shard_bytes: of the largest shard.
        kept: bytes that stand on the disk already, finished.
    """
    needed = size.disk_bytes + HEADROOM
    if isinstance(config.out, Bucket):
        under_way = min(size.shard_bytes, shards_under_way() * shard_bytes)
        check_scratch(config.scratch, needed - size.shard_bytes + under_way, kept)
    else:
        check_space(config.out, needed, kept)


def check_scratch(scratch: Path | None, needed: int, kept: int = 0) -> None:
    """As check_space, of the folder for files on their way to a bucket."""
    check_space(scratch or Path(tempfile.gettempdir()), needed, kept, option="--scratch")


def shards_under_way() -> int:
    """How many shards may be on the disk at once before they are in a bucket."""
    return (os.cpu_count() or 1) + 1
