"""Chooses between `direct` and `tables` from counts alone, and says why."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kernels.errors import MethodError
from kernels.names import Asked
from kernels.tables import LEAST_WIDTH, NORMED_SUMS

# Tokens for each row to build from which tables are taken. A row is built in float64, and combining
# is not free: on a CPU tables break even at 2 tokens a row at d=768 and at 4 at d=64, as `qkvmill
# bench` shows. On a GPU direct has tensor cores: there it is 16 tokens at d=768 and 6 at d=4096.
PAYS_FROM = {"cpu": 4, "cuda": 10}
MEMORY_SHARE = 0.5  # of all memory, so that the choice does not hang on what else is running
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Method:
    """How q, k and v are computed, and why so."""

    name: Literal["direct", "tables"]
    reason: str


def choose_method(
    asked: Asked,
    *,
    tokens: int,
    rows: int,
    table_bytes: int,
    d_model: int,
    normed_sums: bool = False,
    device: torch.device,
    compact: bool = False,
) -> Method:
    """The method for a job that projects `tokens` tokens, with tables of `rows` rows.

    `normed_sums` says that q and k are normalised after a position was added. `compact` says that
    the tables are what is exported, so that nothing else will do.

    Raises:
        MethodError: if tables are asked for and cannot be had.
    """
    if asked == "direct":
        return Method("direct", "it was asked for")
    memory = total_memory(device)
    obstacle = None
    if d_model < LEAST_WIDTH:
        obstacle = (
            f"tables are as exact as direct from d-model {LEAST_WIDTH} on, but it is {d_model}"
        )
    elif normed_sums:
        obstacle = NORMED_SUMS
    elif table_bytes > MEMORY_SHARE * memory:
        obstacle = (
            f"the tables take {table_bytes / 1e9:.1f} GB, more than half of the "
            f"{memory / 1e9:.1f} GB of memory"
        )
    if compact and obstacle:
        raise MethodError(f"--artifact compact cannot be had: {obstacle}; leave it out")
    if compact and asked == "auto":
        return Method("tables", "a compact export holds tables")
    if asked == "tables":
        if obstacle:
            raise MethodError(f"tables cannot be had: {obstacle}; give --method direct")
        return Method("tables", "it was asked for")
    if obstacle:
        return Method("direct", obstacle)
    pays_from = PAYS_FROM[device.type]
    counts = f"{tokens:,} tokens to project are {tokens / rows:.1f} times the {rows:,} rows"
    if tokens < pays_from * rows:
        return Method("direct", f"{counts} that tables need, and they pay from {pays_from} times")
    return Method(
        "tables", f"{counts} to build, {table_bytes / 1e6:.1f} MB; they pay from {pays_from} times"
    )


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a device; on the CPU no more than this process's control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory
