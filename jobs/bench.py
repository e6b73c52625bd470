"""Our ways to Q, K, V against torch's, in one run: first that they agree, then how fast."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.tokens import TokenStream, TokenWriter
from jobs.choose_tokenizer import tokenizer_of
from jobs.config import JobConfig, check_device
from jobs.errors import ConfigError, DisagreementError
from jobs.inputs.files import find_files
from jobs.progress import Reporter
from jobs.tokenise import tokenise
from jobs.ways import Way, make_ways
from kernels import reference
from kernels.dispatch import choose
from kernels.layer import DTYPES, FirstLayer, seeded_layer
from kernels.method import Method
from kernels.packed import pack
from kernels.tables import LEAST_WIDTH, Tables, build, table_bytes

CHECKED_WINDOWS = 2
LEAST_SECONDS = 0.1  # of one timing
VOCABULARY_SIZE = 100277  # of cl100k_base, special tokens included


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to compare; the layer is made from a seed, ids are of a corpus or follow Zipf's law."""

    d_model: int
    heads: int
    corpus: tuple[str, ...] = ()
    context_length: int = 1024
    tokens: int = 65536
    vocabulary_size: int = VOCABULARY_SIZE
    dtype: str = "float32"
    device: str = "auto"
    tf32: bool = False
    rounds: int = 5
    scratch: Path | None = None  # where the whole job is run; None for the system's place

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.scratch is not None and not self.corpus:
            raise ConfigError("--scratch has no effect without a corpus; leave it out")
        if self.tf32 and self.dtype != "float32":
            raise ConfigError(f"--tf32 has no effect with --dtype {self.dtype}; leave one out")
        if self.d_model < LEAST_WIDTH:
            raise ConfigError(f"--d-model {self.d_model} is less than tables need, {LEAST_WIDTH}")
        if self.d_model % self.heads:
            raise ConfigError(f"--d-model {self.d_model} cannot be split into --heads {self.heads}")
        if self.tokens < self.context_length:
            raise ConfigError(
                f"--tokens {self.tokens} is less than --context-length {self.context_length}"
            )


@dataclass(frozen=True, kw_only=True)
class WayResult:
    """One way: what it is, its median time, and how it stands to torch's ways.

    Ratios are medians over rounds of the other's time / this time: more is faster.
    """

    name: str
    what: str
    seconds: float
    tokens_per_second: float
    ratio_to_notebook: float
    ratio_to_addmm: float
    error: float | None  # largest absolute difference from float64


@dataclass(frozen=True, kw_only=True)
class TableFigures:
    """What tables cost and where they begin to pay, for the ids of a bench."""

    rows: int  # distinct tokens and positions
    bytes: int
    build_seconds: float
    break_even_tokens: int | None  # from which building pays; None where combining is not faster
    moved_bytes: int  # the least: q, k and v written once, each row of the tables read once
    bytes_per_second: float
    copy_bytes_per_second: float  # of a plain copy, read and written
    share_of_copy: float


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Everything that one bench found."""

    config: BenchConfig
    tokens: int  # in a round
    distinct_tokens: int
    direct: dict[str, Any]  # what computed, as a manifest has it
    tables: dict[str, Any]
    ways: tuple[WayResult, ...]
    figures: TableFigures


def bench(config: BenchConfig, reporter: Reporter) -> BenchResult:
    """Check that all ways agree with float64, then time them turn by turn.

    Each round times every way, so that a drifting machine slows all of them alike; a short way is
    repeated until it has taken LEAST_SECONDS.

    Raises:
        DisagreementError: if ours is further from float64 than twice same-dtype torch, another way
            than four times, or any gives NaN.
        DeviceError: if the device is not there.
        CorpusError: if the corpus cannot be read or is shorter than a window.
    """
    backend = choose(config.device, DTYPES[config.dtype], tf32=config.tf32)
    reporter.note(backend.sentence())
    ids = corpus_ids(config, reporter) if config.corpus else zipf_ids(config)
    layer = seeded_layer(
        vocabulary_size=config.vocabulary_size,
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=config.heads,
        context_length=config.context_length,
        positions="sinusoidal",
        seed=0,
    ).to(DTYPES[config.dtype])
    placed = layer.on(backend.device)
    packed = pack(layer, backend.device)
    distinct = torch.bincount(ids.flatten()).nonzero().flatten().to(torch.int32)
    tables = build(layer, distinct, backend.device)
    ids = ids.to(backend.device)
    ways = make_ways(placed, packed, tables, backend, ids, reporter)
    with _torch_with_tf32(config.tf32):
        errors = check(placed, ways, ids)
        seconds = _measure(ways, config.rounds, backend.device, reporter)
    results = {}
    for name, way in ways.items():
        median = statistics.median(seconds[name])
        results[name] = WayResult(
            name=name,
            what=way.what,
            seconds=median,
            tokens_per_second=ids.numel() / median,
            ratio_to_notebook=_ratio(seconds["notebook"], seconds[name]),
            ratio_to_addmm=_ratio(seconds["addmm"], seconds[name]),
            error=errors.get(name),
        )
    return BenchResult(
        config=config,
        tokens=ids.numel(),
        distinct_tokens=len(distinct),
        direct=backend.record(Method("direct", "bench"), packed, None),
        tables=backend.record(Method("tables", "bench"), None, tables),
        ways=tuple(results.values()),
        figures=_figures(layer, tables, ids.numel(), results),
    )


def zipf_ids(config: BenchConfig) -> Tensor:
    """Ids [W, T] int32 whose frequencies fall as 1 / rank, as words' do (Zipf 1949)."""
    generator = torch.Generator().manual_seed(0)
    weights = 1.0 / torch.arange(1, config.vocabulary_size + 1)
    shuffled = weights[torch.randperm(config.vocabulary_size, generator=generator)]
    windows = config.tokens // config.context_length
    count = windows * config.context_length
    drawn = torch.multinomial(shuffled, count, replacement=True, generator=generator)
    return drawn.to(torch.int32).view(windows, config.context_length)


def corpus_ids(config: BenchConfig, reporter: Reporter) -> Tensor:
    """The first windows of a corpus in cl100k_base, ids [W, T] int32."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        job = JobConfig(corpus=config.corpus, out=Path(folder))
        writer = TokenWriter(Path(folder))
        tokenizer = tokenizer_of(job)
        tokenise(job, find_files(config.corpus), tokenizer, writer, reporter)
        stream = TokenStream(Path(folder), writer.close())
        windows = min(config.tokens, stream.tokens - 1) // config.context_length
        if windows == 0:
            raise ConfigError(
                f"the corpus has {stream.tokens} tokens, too few for --context-length "
                f"{config.context_length} and a last target"
            )
        if windows * config.context_length < config.tokens:
            reporter.note(
                f"the corpus has {stream.tokens:,} tokens: a round takes "
                f"{windows * config.context_length:,} instead of {config.tokens:,}"
            )
        ids = stream.read(0, windows * config.context_length)
        return ids.clone().view(windows, config.context_length)


def check(layer: FirstLayer, ways: dict[str, Way], ids: Tensor) -> dict[str, float]:
    """Each way's largest error against float64 on the first windows.

    `layer` and `ids` are on the device that computes, so that torch sets the measure there.

    Raises:
        DisagreementError: as `bench`.
    """
    sample = ids[:CHECKED_WINDOWS]
    exact = [part.cpu() for part in reference.project(reference.in_float64(layer), sample)]
    torch_error = _error(reference.project(layer, sample), exact)
    errors = {}
    for name, way in ways.items():
        if way.kind == "part":
            continue
        for output in way.outputs:
            output.fill_(torch.nan)  # so that what is left out is seen
        found = _by_head(way.go(), layer, ids.shape)
        if any(bool(torch.isnan(part).any()) for part in found):
            raise DisagreementError(f"{name} gives NaN, or leaves values unwritten")
        errors[name] = _error([part[:CHECKED_WINDOWS] for part in found], exact)
        # torch's own ways may round otherwise than the one that sets the measure.
        times = 2 if way.kind == "ours" else 4
        if errors[name] > times * torch_error:
            raise DisagreementError(
                f"{name} is {errors[name]:.2g} from float64, more than {times} times torch's "
                f"{torch_error:.2g} in the same dtype"
            )
    return errors


def _figures(
    layer: FirstLayer, tables: Tables, tokens: int, results: dict[str, WayResult]
) -> TableFigures:
    positions = 0 if tables.position_table is None else tables.position_table.shape[1]
    total_width = tables.total_width
    size = table_bytes(
        tokens=len(tables.token_ids), positions=positions, d_model=layer.d_model,
        total_width=total_width, norm=layer.norm,
    )  # fmt: skip
    building = results["tables+build"].seconds - results["tables"].seconds
    saved = (results["direct"].seconds - results["tables"].seconds) / tokens
    written = tokens * total_width * layer.dtype.itemsize
    moved = written + size
    copy_rate = 2 * written / results["copy"].seconds
    rate = moved / results["tables"].seconds
    return TableFigures(
        rows=len(tables.token_ids) + positions,
        bytes=size,
        build_seconds=building,
        break_even_tokens=round(building / saved) if saved > 0 else None,
        moved_bytes=moved,
        bytes_per_second=rate,
        copy_bytes_per_second=copy_rate,
        share_of_copy=rate / copy_rate,
    )


def _measure(
    ways: dict[str, Way], rounds: int, device: torch.device, reporter: Reporter
) -> dict[str, list[float]]:
    """The seconds of every way in every round."""
    repeats = {n: 1 + int(LEAST_SECONDS / _time(way, 1, device)) for n, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with reporter.stage("bench", rounds, "rounds") as advance:
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(_time(way, repeats[name], device))
            advance(1)
    return seconds


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _by_head(result: Any, layer: FirstLayer, shape: torch.Size) -> list[Tensor]:
    """Any way's result for ids [W, T] as q, k, v [W, H, T, Dh]."""
    if isinstance(result, Tensor):
        result = torch.split(result, layer.d_model, dim=1)
    parts = []
    for part in result:
        if part.ndim < 4:
            part = part.reshape(*shape, layer.heads, layer.head_dim).transpose(1, 2)
        parts.append(part)
    return parts


def _error(found: Any, exact: Any) -> float:
    """The largest absolute difference."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.cpu().double() - b).abs().max()) for a, b in pairs)


@contextmanager
def _torch_with_tf32(allowed: bool) -> Iterator[None]:
    """Let torch's products use TF32 exactly where ours do."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _time(way: Way, repeats: int, device: torch.device) -> float:
    """Seconds that a way takes, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        way.go()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats
