"""Our way to Q, K, V against torch's, in one run: first that they agree, then how fast."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.config import check_device
from jobs.errors import ConfigError, DisagreementError
from jobs.progress import Reporter
from kernels import reference
from kernels.dispatch import Backend, choose
from kernels.layer import DTYPES, FirstLayer, PackedLayer, pack, seeded_layer

CHECKED_WINDOWS = 2
LEAST_SECONDS = 0.1  # of one timing
Way = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to compare; the layer is made from a seed, the ids follow Zipf's law."""

    d_model: int
    heads: int
    context_length: int = 1024
    tokens: int = 65536
    vocabulary_size: int = 100277
    dtype: str = "float32"
    device: str = "auto"
    tf32: bool = False
    rounds: int = 5

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.d_model % self.heads:
            raise ConfigError(f"--d-model {self.d_model} cannot be split into --heads {self.heads}")
        if self.tokens < self.context_length:
            raise ConfigError(
                f"--tokens {self.tokens} is less than --context-length {self.context_length}"
            )

    @property
    def windows(self) -> int:
        return self.tokens // self.context_length


@dataclass(frozen=True, kw_only=True)
class WayResult:
    """One way: what it is, its median time, and how it stands to the notebook's way."""

    name: str
    what: str
    seconds: float
    tokens_per_second: float
    ratio_to_notebook: float  # median over rounds of notebook time / this time; more is faster
    error: float | None  # largest absolute difference from float64


def bench(config: BenchConfig, reporter: Reporter) -> tuple[dict[str, Any], list[WayResult]]:
    """Check that all ways agree with float64, then time them turn by turn.

    Each round times every way, so that a drifting machine slows all of them alike; a short way is
    repeated until it has taken LEAST_SECONDS. Returns what was chosen to compute with, and a
    result for each way.

    Raises:
        DisagreementError: if ours is further from float64 than twice same-dtype torch, another way
            than four times, or any gives NaN.
        DeviceError: if the device is not there.
    """
    backend = choose(config.device, DTYPES[config.dtype], tf32=config.tf32)
    reporter.note(backend.sentence())
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
    ids = zipf_ids(config).to(backend.device)
    with _torch_with_tf32(config.tf32):
        ways = _ways(placed, packed, backend, ids, reporter)
        errors = check(placed, ways, ids)
        seconds = _measure(ways, config.rounds, backend.device, reporter)
    results = []
    for name, (what, _) in ways.items():
        median = statistics.median(seconds[name])
        pairs = zip(seconds["notebook"], seconds[name], strict=True)
        results.append(
            WayResult(
                name=name,
                what=what,
                seconds=median,
                tokens_per_second=config.windows * config.context_length / median,
                ratio_to_notebook=statistics.median(a / b for a, b in pairs),
                error=errors.get(name),
            )
        )
    return backend.record(packed), results


def _measure(
    ways: dict[str, tuple[str, Way]], rounds: int, device: torch.device, reporter: Reporter
) -> dict[str, list[float]]:
    """The seconds of every way in every round."""
    repeats = {n: 1 + int(LEAST_SECONDS / _time(way, 1, device)) for n, (_, way) in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with reporter.stage("bench", rounds, "rounds") as advance:
        for _ in range(rounds):
            for name, (_, way) in ways.items():
                seconds[name].append(_time(way, repeats[name], device))
            advance(1)
    return seconds


def zipf_ids(config: BenchConfig) -> Tensor:
    """Ids [W, T] int32 whose frequencies fall as 1 / rank, as words' do (Zipf 1949)."""
    generator = torch.Generator().manual_seed(0)
    weights = 1.0 / torch.arange(1, config.vocabulary_size + 1)
    shuffled = weights[torch.randperm(config.vocabulary_size, generator=generator)]
    shape = (config.windows, config.context_length)
    count = shape[0] * shape[1]
    drawn = torch.multinomial(shuffled, count, replacement=True, generator=generator)
    return drawn.to(torch.int32).view(shape)


def check(layer: FirstLayer, ways: dict[str, tuple[str, Way]], ids: Tensor) -> dict[str, float]:
    """Each way's largest error against float64 on the first windows.

    `layer` and `ids` are on the device that computes, so that torch sets the measure there.

    Raises:
        DisagreementError: as `bench`.
    """
    sample = ids[:CHECKED_WINDOWS]
    exact = [part.cpu() for part in reference.project(reference.in_float64(layer), sample)]
    torch_error = _error(reference.project(layer, sample), exact)
    errors = {}
    for name, (_, way) in ways.items():
        if name == "multiply":
            continue
        found = _by_head(way(), layer, ids.shape)
        if any(bool(torch.isnan(part).any()) for part in found):
            raise DisagreementError(f"{name} gives NaN, or leaves values unwritten")
        errors[name] = _error([part[:CHECKED_WINDOWS] for part in found], exact)
        # torch's own ways may round otherwise than the one that sets the measure.
        times = 2 if name == "qkvmill" else 4
        if errors[name] > times * torch_error:
            raise DisagreementError(
                f"{name} is {errors[name]:.2g} from float64, more than {times} times torch's "
                f"{torch_error:.2g} in the same dtype"
            )
    return errors


def _ways(
    layer: FirstLayer, packed: PackedLayer, backend: Backend, ids: Tensor, reporter: Reporter
) -> dict[str, tuple[str, Way]]:
    """Every way by name: what it is, and the function that does it once."""
    device, dtype = backend.device, layer.dtype
    windows, length = ids.shape
    position = layer.position[:length] if layer.position is not None else None
    shape = (windows, layer.heads, length, layer.head_dim)
    q, k, v = (torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(3))
    weight = torch.cat([layer.q_weight, layer.k_weight, layer.v_weight])
    biases = [b for b in (layer.q_bias, layer.k_bias, layer.v_bias) if b is not None]
    bias = torch.cat(biases)
    transposed = weight.t()

    def embedded() -> Tensor:
        x = F.embedding(ids, layer.embedding)
        return x if position is None else x + position

    def notebook() -> tuple[Tensor, Tensor, Tensor]:
        x = embedded()
        return (
            F.linear(x, layer.q_weight, layer.q_bias),
            F.linear(x, layer.k_weight, layer.k_bias),
            F.linear(x, layer.v_weight, layer.v_bias),
        )

    def addmm() -> Tensor:
        return torch.addmm(bias, embedded().view(-1, layer.d_model), transposed)

    def qkvmill() -> tuple[Tensor, Tensor, Tensor]:
        backend.project(packed, ids, q, k, v)
        return q, k, v

    x = embedded().view(-1, layer.d_model)
    ways: dict[str, tuple[str, Way]] = {
        "notebook": ("embedding, add, three Linear", notebook),
        "addmm": ("gather, add, one addmm, packed", addmm),
    }
    if compiled := _compiled(layer, ids, device, reporter):
        ways["compile"] = compiled
    ways["qkvmill"] = (f"{backend.method}, {backend.kernel}, into [W, H, T, Dh]", qkvmill)
    product = torch.empty(len(x), len(weight), dtype=dtype, device=device)
    ways["multiply"] = (
        "the matrix product alone, into memory at hand",
        lambda: torch.mm(x, transposed, out=product),
    )
    return ways


def _compiled(
    layer: FirstLayer, ids: Tensor, device: torch.device, reporter: Reporter
) -> tuple[str, Way] | None:
    """torch.compile of the definition; None, said aloud, where nothing here can compile it."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        reporter.note("compile is left out: there is no C++ compiler")
        return None
    mode = "max-autotune" if device.type == "cuda" else None
    way = torch.compile(lambda: reference.project(layer, ids), mode=mode)
    try:
        way()
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line]
        reporter.note(f"compile is left out: {(lines or str(error).splitlines())[0].strip()}")
        return None
    return f"torch.compile, {mode or 'default'} mode", way


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
        way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats
