"""What carries out the stages of a job: this machine, or a cluster."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, device

from jobs.compute import Make, make_here
from jobs.config import JobConfig
from jobs.encode import EncodeSettings
from jobs.errors import ConfigError
from jobs.pool import Encode, encoder
from jobs.progress import Reporter
from jobs.tokenizer import Tokenizer
from kernels.dispatch import Backend
from kernels.layer import FirstLayer
from kernels.tables import Tables, build

Encoder = Callable[
    [int, str | Path, Tokenizer, EncodeSettings, Callable[[], None]], AbstractContextManager[Encode]
]
Build = Callable[[FirstLayer, Tensor, device, Callable[[int], None]], Tables]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The stages, each as a function that stands for the one of this machine."""

    workers: int | None = None  # that tokenize; None: as the options say
    name_of_workers: str = "processes"
    encoder: Encoder = encoder
    build: Build = build
    make: Make = make_here


HERE = Engine()


@contextmanager
def engine_of(
    config: JobConfig, tokenizer: Tokenizer, backend: Backend | None, reporter: Reporter
) -> Iterator[Engine]:
    """The engine of --engine, for the time of the block.

    Raises:
        ConfigError: if what it needs is not installed.
        ClusterError: if there is no cluster, or none that fits this machine.
    """
    if config.engine == "local":
        yield HERE
        return
    try:
        from jobs.cluster import cluster
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs the package ray, which is not installed; install it with "
            "pip install 'qkvmill[cluster]'"
        ) from error
    with cluster(config, tokenizer, backend, reporter) as engine:
        yield engine
