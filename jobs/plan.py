"""What a run would do, without writing anything."""

import os
from dataclasses import dataclass

from exporters.contents import window_bytes
from exporters.errors import ExportError, WeightsError
from exporters.source import separate
from exporters.space import HEADROOM, check_space
from exporters.state import check_claim
from exporters.tokens import PART_TOKENS
from jobs.apart import check_apart
from jobs.checkpoints import check_checkpoint
from jobs.choose_tokenizer import tokenizer_of
from jobs.compute import buffer_bytes
from jobs.config import JobConfig
from jobs.corpus import find_files
from jobs.layers import load_weights, model_of
from jobs.layershape import layer_shape
from jobs.outputs import shard_tensors, sizes, windows_per_shard
from jobs.progress import Reporter
from jobs.reads import SCHEME, Reads, first_layer_reads
from jobs.run import choose_backend, decide
from jobs.tokenise import tokenise
from jobs.windows import WindowCounter, check_counts, ids_to_compute, padding_of, rule_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts and sizes of a job; bytes are of tensors, without headers and the manifest."""

    documents: int
    skipped_files: int
    replaced_sequences: int
    corpus_bytes: int
    tokens: int
    distinct_tokens: int
    windows: int
    boundaries: str
    tail: str
    padded_windows: int
    padded_places: int
    dropped_tokens: int | None  # None with random sampling: it takes the draw to know
    short_documents: int
    shards: int
    token_bytes: int
    weight_bytes: int
    table_bytes: int
    window_bytes: int
    total_bytes: int
    disk_bytes: int  # the most on the disk at once: tables of a full export are in .work/ meanwhile
    memory_bytes: int  # the most that is held at once, beside the libraries' own 0.3 GB
    device: str | None
    kernel: str | None
    reason: str | None
    method: str | None
    method_reason: str | None
    obstacle: str | None  # what would stop the run: at --out, too small a disk, a model's tensors
    scheme: str | None  # how reads are counted
    reads: tuple[Reads, ...]  # of a model's first layer, without tables and with them


def plan(config: JobConfig, reporter: Reporter) -> Plan:
    """Count what `run` would do with the same options. Reads and tokenises the whole corpus.

    Of a model's folder config.json is enough; what is wrong with its tensors is an obstacle.

    Raises:
        QkvmillError: if options, corpus or a file of weights would stop the run.
    """
    check_apart(config)
    corpus = find_files(config.corpus, config.out)
    tokenizer = tokenizer_of(config)
    backend = choose_backend(config, reporter)
    model = model_of(config, tokenizer, reporter)
    source = model or load_weights(config, None)
    counter = WindowCounter(rule_of(config))
    totals = tokenise(config, corpus, tokenizer, counter, reporter)
    counts = counter.close()
    check_counts(config, counts)
    drawn = config.sampling == "random"
    windows = config.batch_size * config.random_batches if drawn else counts.windows
    ids = ids_to_compute(totals.seen, counts.padded_windows, padding_of(config, tokenizer))
    largest = int(ids[-1])
    shape = layer_shape(config, source, tokenizer, largest)
    method = decide(config, shape, largest, len(ids), windows, backend)
    size = sizes(
        config, shape, method, tokens=totals.tokens, documents=totals.documents,
        distinct=len(ids), windows=windows,
    )  # fmt: skip
    plans = shard_tensors(config, shape)
    per_shard = windows_per_shard(plans, config.shard_size, config.batch_size)
    full = config.artifact == "full"
    layer_bytes = shape.bytes if shape else 0
    # A layer is rounded to a half dtype beside its float32 self, before there is any shard; only a
    # model's is read block by block.
    rounding = 0 if config.dtype == "float32" or model is not None else 2 * layer_bytes
    shards = -(-windows // per_shard) if full else 0
    buffers = buffer_bytes(
        plans,
        shards,
        min(per_shard, windows) * window_bytes(plans),
        pieces=separate(backend, method.name if method else "direct"),
    )
    # W' is held in float64 while tables are built.
    building = 8 * shape.total_width * shape.d_model if shape and size.table_bytes else 0
    reads: tuple[Reads, ...] = ()
    if model is not None:
        reads = first_layer_reads(model.d_model, model.q_width, model.kv_width)
    held = max(rounding, size.table_bytes + max(building, buffers))
    return Plan(
        documents=totals.documents,
        skipped_files=corpus.skipped_files,
        replaced_sequences=totals.replaced_sequences,
        corpus_bytes=corpus.bytes,
        tokens=totals.tokens,
        distinct_tokens=len(totals.seen),
        windows=windows,
        boundaries=config.boundaries,
        tail=config.tail,
        padded_windows=counts.padded_windows,
        padded_places=counts.padded_places,
        dropped_tokens=None if drawn else totals.tokens - counts.held_tokens,
        short_documents=(
            totals.documents - counts.fruitful_spans if config.boundaries == "split" else 0
        ),
        shards=shards,
        token_bytes=size.token_bytes,
        weight_bytes=size.weight_bytes,
        table_bytes=size.table_bytes,
        window_bytes=size.window_bytes,
        total_bytes=size.total_bytes,
        disk_bytes=size.disk_bytes,
        memory_bytes=layer_bytes + held + 4 * PART_TOKENS,
        device=str(backend.device) if backend else None,
        kernel=backend.kernel if backend else None,
        reason=backend.reason if backend else None,
        method=method.name if method else None,
        method_reason=method.reason if method else None,
        obstacle=_obstacle(config, size.disk_bytes + HEADROOM),
        scheme=SCHEME if reads else None,
        reads=reads,
    )


def _obstacle(config: JobConfig, needed: int) -> str | None:
    """What would stop a run at --out, or a model without tensors, in the words of the run."""
    try:
        if config.weights is not None and os.path.isdir(config.weights):
            check_checkpoint(config.weights, context_length=config.context_length)
        check_claim(config.out, overwrite=config.overwrite)
        check_space(config.out, needed)
    except (ExportError, WeightsError) as error:
        return str(error)
    return None
