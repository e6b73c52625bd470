"""What tables of a model's first layer would take and save, from its config.json alone."""

from dataclasses import dataclass
from pathlib import Path

from jobs.errors import ConfigError
from jobs.modelconfig import read_model
from jobs.reads import SCHEME, Reads, first_layer_reads
from kernels.tables import LEAST_WIDTH, NORMED_SUMS, table_bytes

USUAL_LENGTH = 1024
LONGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Sizes of a model's first layer, and of its tables for the whole vocabulary."""

    model: str
    vocabulary_size: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: str
    qk_norm: str
    positions: str
    max_positions: int
    context_length: int
    rows: int  # of tables: every token, and every position that is added
    table_bytes: int  # float32, with what a norm and rotary positions need
    obstacle: str | None  # why there can be no tables
    notes: tuple[str, ...]
    scheme: str  # how reads are counted
    reads: tuple[Reads, ...]


def plan_model(folder: Path, context_length: int | None) -> ModelPlan:
    """Plan tables for windows of context_length tokens; no weights are needed, nor a corpus.

    Args:
        context_length: None for USUAL_LENGTH, or the model's longest window if that is less.

    Raises:
        ConfigError: if the length is out of range.
        WeightsError: if config.json cannot be used.
    """
    if context_length is None:
        longest = read_model(folder, context_length=1).max_positions
        context_length = min(USUAL_LENGTH, longest)
    if not 1 <= context_length <= LONGEST:
        raise ConfigError(f"--context-length {context_length} is not between 1 and {LONGEST}")
    model = read_model(folder, context_length=context_length)
    added = context_length if model.positions == "learned" else 0
    size = table_bytes(
        tokens=model.vocabulary_size,
        positions=added,
        d_model=model.d_model,
        total_width=model.q_width + 2 * model.kv_width,
        norm=model.norm,
        angles=context_length * model.rotary_dims,
    )
    obstacle = None
    if model.d_model < LEAST_WIDTH:
        obstacle = f"tables need a width of {LEAST_WIDTH} or more"
    elif added and model.qk_norm != "none":
        obstacle = NORMED_SUMS
    return ModelPlan(
        model=model.model_type,
        vocabulary_size=model.vocabulary_size,
        d_model=model.d_model,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        norm=model.norm,
        qk_norm=model.qk_norm,
        positions=model.positions,
        max_positions=model.max_positions,
        context_length=context_length,
        rows=model.vocabulary_size + added,
        table_bytes=size,
        obstacle=obstacle,
        notes=model.notes,
        scheme=SCHEME,
        reads=first_layer_reads(model.d_model, model.q_width, model.kv_width),
    )
