"""JobConfig: what a job is asked to do, checked."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exporters.bucket import Place
from exporters.nearest import did_you_mean
from jobs.errors import ConfigError
from kernels.names import DEVICE_NAMES, DTYPE_NAMES, Asked, Positions

Sampling = Literal["sequential", "random"]
Format = Literal["text", "jsonl", "csv", "tsv", "parquet", "npy", "bin", "safetensors"]
Boundaries = Literal["ignore", "split"]
Tail = Literal["drop", "pad"]

EXPORTS = ("tokens", "features", "qkv")
D_MODEL = 768
HEADS = 12


def check_device(name: str) -> None:
    """Raise ConfigError if the name of a device is of no known form."""
    if not DEVICE_NAMES.fullmatch(name):
        raise ConfigError(f"--device {name!r} is not auto, cpu, cuda or cuda:N")


def check_scratch_use(out: Place, scratch: Path | None) -> None:
    """Raise ConfigError if a scratch folder is given for an export that is written in place."""
    if scratch is not None and isinstance(out, Path):
        raise ConfigError("--scratch has no effect: --out is no URL of a bucket; leave it out")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The options of `qkvmill run`. None means: as the weights file says, or the default.

    Raises:
        ConfigError: if options are out of range, contradict each other, or would have no effect.
    """

    corpus: tuple[str, ...]  # as jobs/inputs/files.py takes them
    out: Place
    scratch: Path | None = None  # for a bucket; None: the system's folder for temporary files
    tokenizer: str | None = None  # jobs/choose_tokenizer.py says what None stands for
    context_length: int = 1024
    d_model: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    batch_size: int = 8
    sampling: Sampling = "sequential"
    stride: int | None = None
    boundaries: Boundaries = "ignore"
    tail: Tail = "drop"
    batches: int | None = None
    seed: int = 0
    separator: Literal["eot", "none"] = "eot"
    weights: Path | None = None
    positions: Positions | None = None
    pre_rope: bool = False
    vocab_size: str | None = None  # "encoding", "corpus" or a number
    export: tuple[str, ...] = ("tokens", "qkv")
    artifact: Literal["full", "compact"] = "full"
    method: Asked = "auto"
    save_weights: bool = True
    dtype: str = "float32"
    layout: Literal["bhtd", "bthd"] = "bhtd"
    device: str = "auto"
    tf32: bool = False
    shard_size: int = 512_000_000
    format: Format | None = None  # None: by the name of each file
    text_field: str = "text"
    token_dtype: Literal["uint16", "uint32"] | None = None
    text_errors: Literal["strict", "replace"] = "strict"
    bad_records: Literal["fail", "skip"] = "fail"
    max_record_bytes: int = 64 << 20
    workers: int | None = None  # None: one for each core
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigError("no corpus is given; name files or folders of text")
        check_scratch_use(self.out, self.scratch)
        least = {
            "context_length": 1, "d_model": 1, "heads": 1, "kv_heads": 1, "batch_size": 1,
            "stride": 1, "batches": 1, "seed": 0, "shard_size": 1, "max_record_bytes": 1,
            "workers": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is less than {bound}")
            if value is not None and value >= 2**63:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is not below 2^63")
        if self.dtype not in DTYPE_NAMES:
            hint = did_you_mean(self.dtype, DTYPE_NAMES)
            raise ConfigError(f"--dtype {self.dtype} is not one of {', '.join(DTYPE_NAMES)}{hint}")
        for name in self.export:
            if name not in EXPORTS:
                hint = did_you_mean(name, EXPORTS)
                raise ConfigError(f"--export {name} is not one of {', '.join(EXPORTS)}{hint}")
        if not self.text_field:
            raise ConfigError("--text-field is empty; name the field that holds the text")
        if self.sampling == "random" and self.stride is not None:
            raise ConfigError("--stride has no effect with --sampling random; leave one out")
        if self.sampling == "random" and self.tail == "pad":
            raise ConfigError("--tail pad has no effect with --sampling random; leave one out")
        if self.tf32 and self.dtype != "float32":
            raise ConfigError(f"--tf32 has no effect with --dtype {self.dtype}; leave one out")
        if self.tf32 and "qkv" not in self.export:
            raise ConfigError("--tf32 has no effect without --export qkv; leave one out")
        if self.tf32 and self.method != "direct":
            raise ConfigError("--tf32 needs --method direct: tables are exact")
        check_device(self.device)
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError("--ray-address has no effect without --engine ray; leave it out")
        if self.engine == "ray" and self.device.startswith("cuda:"):
            raise ConfigError(f"--device {self.device} is a GPU of one machine; give cuda")
        self._check_layer_options()
        self._check_artifact()

    def _check_layer_options(self) -> None:
        if not self.needs_layer:
            for name in ("weights", "d_model", "heads", "kv_heads", "positions", "vocab_size"):
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise ConfigError(f"--{option} has no effect without --export features or qkv")
        if self.pre_rope and "qkv" not in self.export:
            raise ConfigError("--pre-rope has no effect without --export qkv")
        if self.vocab_size is not None:
            if self.weights is not None:
                raise ConfigError("--vocab-size has no effect with --weights; leave it out")
            number = self.vocab_size.isascii() and self.vocab_size.isdigit()
            number = number and len(self.vocab_size) <= 18
            if self.vocab_size not in ("encoding", "corpus") and not (
                number and int(self.vocab_size) > 0
            ):
                raise ConfigError(
                    f"--vocab-size {self.vocab_size} is not encoding, corpus or a number above 0 "
                    f"of 18 digits at most{did_you_mean(self.vocab_size, ('encoding', 'corpus'))}"
                )
        if self.weights is None:
            d_model, heads, kv_heads = self.seeded_widths
            if d_model % heads:
                raise ConfigError(
                    f"--d-model {d_model} cannot be split into --heads {heads} evenly; "
                    "give a width that is a multiple of the heads"
                )
            if heads % kv_heads:
                raise ConfigError(
                    f"--heads {heads} cannot share --kv-heads {kv_heads} evenly; "
                    "give a divisor of the heads"
                )
            if self.positions == "rope" and d_model // heads % 2:
                raise ConfigError(
                    f"--positions rope turns pairs of values, but --d-model {d_model} and --heads "
                    f"{heads} give heads of {d_model // heads}; give widths for an even one"
                )
            if self.pre_rope and self.seeded_positions != "rope":
                raise ConfigError(
                    f"--pre-rope has no effect: positions are {self.seeded_positions}; leave it out"
                )

    def _check_artifact(self) -> None:
        if "qkv" not in self.export and self.method != "auto":
            raise ConfigError(f"--method {self.method} has no effect without --export qkv")
        if not self.needs_layer and not self.save_weights:
            raise ConfigError("--no-save-weights has no effect without --export features or qkv")
        if self.artifact == "full":
            return
        if "qkv" not in self.export:
            raise ConfigError(
                "--artifact compact holds the tables of q, k and v: give --export qkv"
            )
        if self.method == "direct":
            raise ConfigError("--artifact compact is made of tables; leave --method direct out")
        if "features" in self.export and not self.save_weights:
            raise ConfigError(
                "--artifact compact expands x and y from the weights; "
                "leave --no-save-weights or --export features out"
            )

    @property
    def local_out(self) -> Path | None:
        """The folder of the export; None where it goes to a bucket."""
        return self.out if isinstance(self.out, Path) else None

    @property
    def needs_layer(self) -> bool:
        """Whether anything is exported that the first layer computes."""
        return "features" in self.export or "qkv" in self.export

    @property
    def seeded_widths(self) -> tuple[int, int, int]:
        """d_model, heads and kv_heads of a layer that is made from the seed."""
        heads = self.heads or HEADS
        return self.d_model or D_MODEL, heads, self.kv_heads or heads

    @property
    def seeded_positions(self) -> Positions:
        """The positions of a layer that is made from the seed."""
        return self.positions or "sinusoidal"

    @property
    def window_stride(self) -> int:
        """Tokens from one sequential window to the next."""
        return self.stride or self.context_length

    @property
    def random_batches(self) -> int:
        """How many batches random sampling draws: one, as the notebook does, unless told."""
        return self.batches or 1

    def record(self) -> dict[str, Any]:
        """The options that shape bytes, for the manifest; nothing of where files lay.

        The tokenizer has a section of its own.
        """
        elsewhere = (
            "corpus", "out", "scratch", "tokenizer", "weights", "device", "overwrite", "workers",
            "engine", "ray_address",
        )  # fmt: skip
        options = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        if self.sampling == "sequential":
            options["stride"] = self.window_stride
        else:
            options["batches"] = self.random_batches
        if self.needs_layer and self.weights is None:
            options["d_model"], options["heads"], options["kv_heads"] = self.seeded_widths
            options["positions"] = self.seeded_positions
            options["vocab_size"] = self.vocab_size or "encoding"
        options["export"] = [name for name in EXPORTS if name in self.export]
        return options
