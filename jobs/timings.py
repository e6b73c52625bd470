"""Where the time of a job went: its stages, their parts, and which held it back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

START_UP = "start-up"
OTHER = "other"
IDLE = "idle"

DOING = {
    "compute": "computing",
    "write": "writing and hashing",
    IDLE: "waiting",
}


@dataclass
class Spent:
    """What a stage has taken and done so far."""

    seconds: float = 0.0
    tokens: int = 0
    bytes: int = 0
    parts: dict[str, float] = field(default_factory=dict)  # seconds
    nodes: dict[str, int] = field(default_factory=dict)  # tokens that each of a cluster did


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A stage of a finished job, or a part of one, or what a node of a cluster did of it."""

    name: str
    within: str | None  # the stage that it is a part of
    node: bool = False
    seconds: float
    share: float  # of the whole job
    tokens_per_second: float | None  # None where none are counted
    bytes_per_second: float | None


def timings(spent: Mapping[str, Spent], start_up: float, whole: float) -> tuple[Timing, ...]:
    """The stages in the order in which they began, each followed by its parts.

    The shares of stages add up to 1, with the time before the first one as START_UP and that
    between and after them as OTHER; those of parts to their stage's, with IDLE for what is left.

    Args:
        start_up: seconds before the first stage.
        whole: seconds of everything.
    """

    def timing(name: str, seconds: float, within: str | None, done: Spent) -> Timing:
        return Timing(
            name=name,
            within=within,
            seconds=round(seconds, 3),
            share=round(seconds / whole, 4) if whole else 0.0,
            tokens_per_second=round(done.tokens / seconds, 1) if done.tokens and seconds else None,
            bytes_per_second=round(done.bytes / seconds, 1) if done.bytes and seconds else None,
        )

    rows = [timing(START_UP, start_up, None, Spent())]
    for name, done in spent.items():
        rows.append(timing(name, done.seconds, None, done))
        for node, tokens in sorted(done.nodes.items()):
            rows.append(replace(timing(node, done.seconds, name, Spent(tokens=tokens)), node=True))
        if done.parts:
            idle = max(0.0, done.seconds - sum(done.parts.values()))
            parts = {**done.parts, IDLE: idle}
            rows += [timing(part, seconds, name, Spent()) for part, seconds in parts.items()]
    other = whole - start_up - sum(done.seconds for done in spent.values())
    return (*rows, timing(OTHER, max(0.0, other), None, Spent()))


def slowest(stages: Sequence[Timing]) -> Timing:
    """The stage that took the most of the time; where there was none, what else did."""
    whole = [stage for stage in stages if stage.within is None]
    named = [stage for stage in whole if stage.name not in (START_UP, OTHER)]
    return max(named or whole, key=lambda stage: stage.seconds)


def held_back(stages: Sequence[Timing]) -> str:
    """What took the most of the time: "windows took 61% of the time, most of it computing"."""
    stage = slowest(stages)
    said = f"{stage.name} took {stage.share:.0%} of the time"
    if parts := [part for part in stages if part.within == stage.name and not part.node]:
        part = max(parts, key=lambda part: part.seconds)
        most = "most" if 2 * part.seconds > stage.seconds else "the largest part"
        said += f", {most} of it {DOING.get(part.name, part.name)}"
    first = max(stages, key=lambda stage: stage.seconds)
    if first.seconds > stage.seconds:
        return f"{first.name} took {first.share:.0%} of the time; of the stages, {said}"
    return said
