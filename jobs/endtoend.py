"""A whole job, timed stage by stage: which of them holds it back."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.bench import BenchConfig
from jobs.config import JobConfig
from jobs.progress import Reporter
from jobs.run import run
from jobs.timings import Timing, slowest


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """A whole job: its stages, and which one held it back."""

    method: str
    tokens: int
    bytes: int
    seconds: float
    stages: tuple[Timing, ...]
    held_back_by: str


def end_to_end(config: BenchConfig) -> EndToEnd:
    """Run the job of a bench's corpus and widths into a folder that is removed afterwards.

    Raises:
        QkvmillError: as `run`.
    """
    reporter = Reporter(quiet=True)
    with tempfile.TemporaryDirectory(dir=config.scratch, prefix="qkvmill-") as folder:
        job = JobConfig(
            corpus=config.corpus,
            out=Path(folder) / "export",
            context_length=config.context_length,
            d_model=config.d_model,
            heads=config.heads,
            dtype=config.dtype,
            device=config.device,
            method="direct" if config.tf32 else "auto",
            tf32=config.tf32,
        )
        done = run(job, reporter)
    stages = done.stages
    return EndToEnd(
        method=str(done.method),
        tokens=done.tokens,
        bytes=done.bytes,
        seconds=sum(stage.seconds for stage in stages if stage.within is None),
        stages=stages,
        held_back_by=slowest(stages).name,
    )
