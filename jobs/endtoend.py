"""A whole job, timed stage by stage: which of them holds it back."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.bench import BenchConfig
from jobs.config import JobConfig
from jobs.progress import Reporter
from jobs.run import run

STAGES = {
    "tokenise": "text to token ids, written",
    "layer": "parameters from the seed",
    "build": "tables, written to .work/",
    "windows": "shards, by the two below",
    "compute": "q, k and v",
    "write": "write, hash and sync",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a job, or a part of the window stage that runs beside the other."""

    name: str
    what: str
    seconds: float
    share: float  # of the job's seconds
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """A whole job: its stages, and which one held it back."""

    method: str
    tokens: int
    bytes: int
    seconds: float
    stages: tuple[Stage, ...]
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
    whole = sum(done.seconds.get(name, 0.0) for name in STAGES if name not in ("compute", "write"))
    stages = [
        Stage(
            name=name,
            what=what,
            seconds=done.seconds[name],
            share=done.seconds[name] / whole,
            tokens_per_second=done.tokens / max(done.seconds[name], 1e-9),
        )
        for name, what in STAGES.items()
        if name in done.seconds
    ]
    single = [stage for stage in stages if stage.name != "windows"]
    return EndToEnd(
        method=str(done.method),
        tokens=done.tokens,
        bytes=done.bytes,
        seconds=whole,
        stages=tuple(stages),
        held_back_by=max(single, key=lambda stage: stage.seconds).name,
    )
