"""How long a job takes on a cluster: the schedule of --engine ray, simulated from measured rates.

    python benchmarks/schedule.py [--nodes 1 4 16 64] [--tokens 1e12] [--shard-size 20e9] ...

A job is two stages, one after the other: segments of text are tokenized, and shards are made of the
tokens. In each, every core takes the next piece as soon as it is done with one, no piece is made
twice, and what a failing node has under way goes to others. What all share (the driver that reads,
the storage) slows all alike once together they want more than there is. An export with --artifact
compact is the first stage alone. Left out are the tables, which take seconds, that results are
taken in order, and failures of the driver, after which somebody gives the command again.

A round draws which nodes are slow and when which fail. The cores of a node are alike, so that a
node takes its pieces in waves, one for each core; and it is given as many waves at once as take it
a SLICES-th of the time that is left, down to one wave. What it has not begun when it fails goes
back, so that only the last few waves of a stage can differ from giving pieces one by one, by a
fraction of a percent, while the events of a round fall from millions to some thousands.

Prints hours of the ideal (no slow node, no failure, no start-up), the median and the 95th
percentile of the rounds, the median's node-hours, work that failures took, and what was the limit.
"""

import argparse
import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from exporters.contents import window_bytes, window_tensors
from exporters.space import readable
from jobs.inputs.segments import BLOCK
from jobs.outputs import windows_per_shard
from kernels.layer import DTYPES

DAY, HOUR = 86400.0, 3600.0  # seconds
SLICES = 8.0

# RATES, all to be measured on the machines that are meant. MB are 10^6 bytes, tokens of d = 768.
TOKENIZE = 8.4  # RATE: MB of text a second and core
COMBINE = 278_000  # RATE: tokens a second and core, by tables
WRITE = 783  # RATE: MB a second and core, hashed and written
READ = 181  # RATE: MB of text a second, by the driver
JOURNAL = 1600  # RATE: shards a second that the driver notes, each synced to a disk


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes that are alike, but for a share of slow ones, and how often they fail."""

    nodes: int
    cores: int
    slow_share: float = 0.0  # the chance of each node to be slow
    slowdown: float = 1.0  # by which a piece takes longer there
    failures: float = 0.0  # of a node, a day
    away: float = 0.0  # seconds from a failure until the node takes pieces again


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Pieces of work that are alike, and what limits how many are done in a second."""

    name: str
    pieces: int
    seconds: float  # of a core, for a piece
    node_rate: float = math.inf  # pieces a second, of each node
    shared: dict[str, float] = field(default_factory=dict)  # pieces a second of all, by what limits

    def seconds_on(self, cores: int, slowdown: float = 1.0) -> float:
        """Seconds that a piece takes where all cores of a node are at work."""
        return max(self.seconds * slowdown, cores / self.node_rate)

    @property
    def most(self) -> float:
        """The most pieces in a second, whatever the cluster."""
        return min(self.shared.values(), default=math.inf)


@dataclass(frozen=True)
class Outcome:
    """How a stage went: its seconds, and how many pieces' worth of work failures took."""

    seconds: float
    lost: float


def ideal(stage: Stage, cluster: Cluster) -> tuple[float, str]:
    """Seconds of a stage if every node is always at work at full speed, and what limits it."""
    rates = {
        "computing": cluster.nodes * cluster.cores / stage.seconds,
        "nodes' network": cluster.nodes * stage.node_rate,
        **stage.shared,
    }
    limit = min(rates, key=lambda name: rates[name])
    return stage.pieces / rates[limit], limit


def simulate(stage: Stage, cluster: Cluster, random: Random, slices: float = SLICES) -> Outcome:
    """One round of a stage.

    Time runs on two clocks: `now` is real, `work` stands for what is done and falls behind by the
    factor by which the nodes together want more than `stage.most`.

    Args:
        slices: as SLICES; math.inf gives pieces one wave at a time.
    """
    cores = cluster.cores
    slow = [random.random() < cluster.slow_share for _ in range(cluster.nodes)]
    pace = [stage.seconds_on(cores, cluster.slowdown if is_slow else 1.0) for is_slow in slow]
    left, lost, wanted = stage.pieces, 0.0, 0.0
    now = work = 0.0
    up, idle = set(range(cluster.nodes)), list(range(cluster.nodes))
    capacity = sum(cores / seconds for seconds in pace)
    busy: dict[int, tuple[float, int, float]] = {}  # node -> when it began, pieces, its rate
    ends: list[tuple[float, int, float]] = []  # by the clock of work: when, node, when it began
    changes: list[tuple[float, int]] = []  # by the real clock: a node fails, or comes back
    if cluster.failures:
        changes = [(random.expovariate(cluster.failures / DAY), node) for node in idle]
        heapq.heapify(changes)

    while left or busy:
        while left and idle:
            node = idle.pop()
            waves = max(1, int(left / capacity / slices / pace[node]))
            count = min(left, waves * cores)
            left -= count
            rate = min(count, cores) / pace[node]
            wanted += rate
            busy[node] = (work, count, rate)
            heapq.heappush(ends, (work + waves * pace[node], node, work))
        while ends and (ends[0][1] not in busy or busy[ends[0][1]][0] != ends[0][2]):
            heapq.heappop(ends)  # of a node that failed meanwhile
        slower = max(1.0, wanted / stage.most)
        end = now + (ends[0][0] - work) * slower if ends else math.inf
        if not changes or end <= changes[0][0]:
            now, work, node = end, ends[0][0], heapq.heappop(ends)[1]
            wanted -= busy.pop(node)[2]
            idle.append(node)
            continue
        at, node = heapq.heappop(changes)
        now, work = at, work + (at - now) / slower
        if node not in up:
            up.add(node)
            idle.append(node)
            capacity += cores / pace[node]
            heapq.heappush(changes, (now + random.expovariate(cluster.failures / DAY), node))
            continue
        up.remove(node)
        capacity -= cores / pace[node]
        heapq.heappush(changes, (now + cluster.away, node))
        if node in busy:
            began, count, rate = busy.pop(node)
            wanted -= rate
            waves, part = divmod((work - began) / pace[node], 1.0)
            undone = max(0, count - int(waves) * cores)
            left += undone
            lost += part * min(undone, cores)
        else:
            idle.remove(node)
    return Outcome(now, lost)


def stages(options: argparse.Namespace) -> tuple[Stage, Stage, int, int]:
    """Both stages of a job, the bytes of its windows in all, and the tokens of a shard."""
    plans = window_tensors(
        ("tokens", "qkv"), context_length=options.context_length, layout="bhtd",
        dtype=options.dtype, heads=1, kv_heads=1, head_dim=options.d_model,
    )  # fmt: skip
    windows = options.tokens // options.context_length
    per_shard = windows_per_shard(plans, options.shard_size, batch_size=8)
    shard_bytes = per_shard * window_bytes(plans)
    shard_tokens = per_shard * options.context_length
    text = options.tokens * options.text_bytes
    tokens = Stage(
        name="tokens",
        pieces=math.ceil(text / BLOCK),
        seconds=BLOCK / (options.tokenize * 1e6),
        shared={"reading": options.read * 1e6 / BLOCK},
    )
    shards = Stage(
        name="shards",
        pieces=math.ceil(windows / per_shard),
        seconds=shard_tokens / options.combine + shard_bytes / (options.write * 1e6),
        node_rate=options.node_bandwidth * 1e9 / shard_bytes,
        shared={"storage": options.storage * 1e9 / shard_bytes, "journal": options.journal},
    )
    return tokens, shards, windows * window_bytes(plans), shard_tokens


def heading(options: argparse.Namespace) -> str:
    """What is assumed, in a few lines."""
    _, shards, total, shard_tokens = stages(options)
    a_token = total / (options.tokens // options.context_length * options.context_length)
    return (
        f"{options.tokens:,} tokens; {options.dtype}, d = {options.d_model}, "
        f"T = {options.context_length}: {a_token:,.0f} bytes a token\n"
        f"text {readable(int(options.tokens * options.text_bytes))}, "
        f"compact {readable(4 * options.tokens)} and the tables, full {readable(total)} in "
        f"{shards.pieces:,} shards of {shard_tokens:,} tokens\n"
        f"a core: tokenizes {options.tokenize:g} MB/s, combines {options.combine:,} tokens/s, "
        f"hashes and writes {options.write:g} MB/s\n"
        f"the driver: reads {options.read:g} MB/s, what {options.read / options.tokenize:.0f} "
        f"cores tokenize, and notes {options.journal:g} shards/s\n"
        f"storage takes {options.node_bandwidth:g} GB/s of a node, {options.storage:g} GB/s in "
        f"all\n"
        f"{options.cores} cores a node; {options.slow_share:.0%} of nodes {options.slowdown:g} "
        f"times slower; {options.failures:g} failures of a node a day, back after "
        f"{options.away:g} min; start-up {options.start_up:g} s\n"
    )


def rows(options: argparse.Namespace) -> list[str]:
    """A line for each stage on each number of nodes."""
    lines = [f"{'nodes':>6}  {'stage':7}{'ideal h':>10}{'median h':>10}{'p95 h':>10}"
             f"{'node-h':>10}{'lost %':>8}  limited by"]  # fmt: skip
    for nodes in options.nodes:
        cluster = Cluster(
            nodes=nodes, cores=options.cores, slow_share=options.slow_share,
            slowdown=options.slowdown, failures=options.failures,
            away=options.away * 60 + options.start_up,
        )  # fmt: skip
        for stage in stages(options)[:2]:
            check(stage, cluster)
            starting = options.start_up if stage.name == "tokens" else 0.0
            best, limit = ideal(stage, cluster)
            outcomes = [
                simulate(stage, cluster, Random(options.seed + turn))
                for turn in range(options.rounds)
            ]
            hours = sorted((starting + outcome.seconds) / HOUR for outcome in outcomes)
            median = statistics.median(hours)
            late = hours[math.ceil(0.95 * len(hours)) - 1]
            lost = statistics.median(outcome.lost for outcome in outcomes) / stage.pieces
            lines.append(f"{nodes:6}  {stage.name:7}{best / HOUR:10,.2f}{median:10,.2f}"
                         f"{late:10,.2f}{nodes * median:10,.0f}{100 * lost:8.2f}"
                         f"  {limit}")  # fmt: skip
    return lines


def check(stage: Stage, cluster: Cluster) -> None:
    """Stop where nodes fail so often that pieces are seldom finished."""
    longest = stage.seconds_on(cluster.cores, cluster.slowdown)
    if cluster.failures * longest > DAY / 10:
        raise SystemExit(
            f"Error: a piece of the stage {stage.name} takes {longest:.0f} s and a node fails "
            f"{cluster.failures:g} times a day; give fewer --failures or a smaller --shard-size"
        )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def whole(text: str) -> int:
        number = float(text)
        if not (number >= 1 and number.is_integer()):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
        return int(number)

    def above(text: str) -> float:
        if not float(text) > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return float(text)

    def not_below(least: float, most: float = math.inf) -> Callable[[str], float]:
        def number(text: str) -> float:
            if not least <= float(text) <= most:
                raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
            return float(text)

        return number

    add = parser.add_argument
    add("--nodes", type=whole, nargs="+", default=[1, 4, 16, 64])
    add("--cores", type=whole, default=32, help="of a node")
    add("--tokens", type=whole, default=10**12)
    add("--text-bytes", type=above, default=4.0, help="of a token")
    add("--context-length", type=whole, default=1024)
    add("--d-model", type=whole, default=768)
    add("--dtype", choices=list(DTYPES), default="float32")
    add("--shard-size", type=whole, default=20 * 10**9, help="bytes")
    add("--tokenize", type=above, default=TOKENIZE, help="MB of text a second and core")
    add("--combine", type=whole, default=COMBINE, help="tokens a second and core")
    add("--write", type=above, default=WRITE, help="MB hashed and written a second and core")
    add("--read", type=above, default=READ, help="MB of text a second, the driver")
    add("--journal", type=above, default=JOURNAL, help="shards noted a second, the driver")
    add("--node-bandwidth", type=above, default=10.0, help="GB a second from a node to the storage")
    add("--storage", type=above, default=100.0, help="GB a second, all nodes together")
    add("--slow-share", type=not_below(0, 1), default=0.05, help="of the nodes")
    add("--slowdown", type=not_below(1), default=1.5, help="times that slow nodes take")
    add("--failures", type=not_below(0), default=0.01, help="of a node, a day")
    add("--away", type=not_below(0), default=10.0, help="minutes that a failed node is away")
    add("--start-up", type=not_below(0), default=60.0, help="seconds")
    add("--rounds", type=whole, default=20)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> str:
    """All that is printed."""
    return heading(options) + "\n" + "\n".join(rows(options))


def main() -> None:
    print(report(parsed()))


if __name__ == "__main__":
    main()
