"""What a run would do, without writing anything."""

from dataclasses import dataclass

from exporters.errors import ExportError
from exporters.folder import check_claim, check_space
from exporters.tokens import PART_TOKENS
from jobs.config import JobConfig
from jobs.corpus import find_files
from jobs.layers import check_ids, layer_shape, load_weights
from jobs.outputs import shard_tensors, window_bytes, windows_per_shard
from jobs.progress import Reporter
from jobs.run import HEADROOM, choose_backend, plan_windows
from jobs.tokenise import TokenCounter, tokenise
from jobs.tokenizer import load_tokenizer
from jobs.windows import check_length


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts and sizes of a job; bytes are of tensors, without headers and the manifest."""

    documents: int
    skipped_files: int
    replaced_sequences: int
    corpus_bytes: int
    tokens: int
    windows: int
    dropped_tokens: int | None  # None with random sampling: it takes the draw to know
    shards: int
    token_bytes: int
    weight_bytes: int
    window_bytes: int
    total_bytes: int
    memory_bytes: int  # the most that is held at once, beside the libraries' own 0.3 GB
    device: str | None
    method: str | None
    kernel: str | None
    reason: str | None
    obstacle: str | None  # what stands at --out, or too small a disk, would stop the run


def plan(config: JobConfig, reporter: Reporter) -> Plan:
    """Count what `run` would do with the same options. Reads and tokenises the whole corpus.

    Raises:
        QkvmillError: if options, corpus or weights would stop the run.
    """
    corpus = find_files(config.corpus)
    tokenizer = load_tokenizer(config.tokenizer)
    backend = choose_backend(config, reporter)
    loaded = load_weights(config)
    totals = tokenise(config, corpus, tokenizer, TokenCounter(), reporter)
    windows, dropped = _count_windows(config, totals.tokens)
    shape = layer_shape(config, loaded, tokenizer, totals.largest_id)
    if shape is not None:
        check_ids(config, shape, totals.largest_id)
    plans = shard_tensors(config, shape)
    per_window = window_bytes(plans)
    per_shard = windows_per_shard(plans, config.shard_size, config.batch_size)
    token_bytes = 4 * totals.tokens + 8 * totals.documents
    weight_bytes = shape.bytes if shape else 0
    all_windows = per_window * windows
    total_bytes = token_bytes + weight_bytes + all_windows
    # A layer is rounded to a half dtype beside its float32 self, before there is any shard.
    rounding = 0 if config.dtype == "float32" else 2 * weight_bytes
    shard_bytes = per_window * min(per_shard, windows)
    return Plan(
        documents=totals.documents,
        skipped_files=corpus.skipped_files,
        replaced_sequences=totals.replaced_sequences,
        corpus_bytes=corpus.bytes,
        tokens=totals.tokens,
        windows=windows,
        dropped_tokens=dropped,
        shards=-(-windows // per_shard),
        token_bytes=token_bytes,
        weight_bytes=weight_bytes,
        window_bytes=all_windows,
        total_bytes=total_bytes,
        memory_bytes=weight_bytes + max(rounding, shard_bytes) + 4 * PART_TOKENS,
        device=str(backend.device) if backend else None,
        method=backend.method if backend else None,
        kernel=backend.kernel if backend else None,
        reason=backend.reason if backend else None,
        obstacle=_obstacle(config, total_bytes + HEADROOM),
    )


def _obstacle(config: JobConfig, needed: int) -> str | None:
    """What would stop a run at --out, in the words that it would use."""
    try:
        check_claim(config.out, overwrite=config.overwrite)
        check_space(config.out, needed)
    except ExportError as error:
        return str(error)
    return None


def _count_windows(config: JobConfig, tokens: int) -> tuple[int, int | None]:
    """Windows and dropped tokens, without drawing what random sampling would draw."""
    if config.sampling == "random":
        check_length(tokens, config.context_length)
        return config.batch_size * config.random_batches, None
    windows = plan_windows(config, tokens)
    return windows.count, windows.dropped_tokens
