"""What a run would do, without writing anything."""

import os
from dataclasses import dataclass, replace

import torch

from exporters.contents import window_bytes
from exporters.errors import ExportError, WeightsError
from exporters.source import separate
from exporters.spans import WindowCounts, count_more
from exporters.state import check_claim
from exporters.tokens import PART_TOKENS
from jobs.apart import check_apart
from jobs.checkpoints import check_checkpoint
from jobs.choose_tokenizer import check_exported, tokenizer_of
from jobs.compute import buffer_bytes
from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.estimate import Estimate, estimate, needs_no_sample
from jobs.inputs.files import Corpus, find_files, notes
from jobs.layers import load_weights, model_of
from jobs.layershape import layer_shape
from jobs.outputs import Sizes, check_shards, shard_tensors, sizes, windows_per_shard
from jobs.progress import Reporter
from jobs.reads import SCHEME, Reads, first_layer_reads
from jobs.room import check_room
from jobs.run import choose_backend, decide
from jobs.tokenise import tokenise
from jobs.tokenizer import Tokenizer
from jobs.windows import WindowCounter, check_counts, padding_of, rule_of
from kernels.tables import build_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts and sizes of a job; bytes are of tensors, without headers and the manifest.

    Where the corpus was sampled, counts are estimates, and None what a sample cannot tell.
    """

    exact: bool  # whether the whole corpus was read
    sampled_bytes: int | None  # of the corpus, as stored, that the estimate is from
    documents: int
    skipped_files: int
    replaced_sequences: int | None
    bad_records: int | None
    corpus_bytes: int
    tokens: int
    tokens_error: int  # the true number lies within it of `tokens` in 95 of 100 corpora
    distinct_tokens: int
    windows: int
    boundaries: str
    tail: str
    padded_windows: int
    padded_places: int
    dropped_tokens: int | None  # None with random sampling, too: it takes the draw to know
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


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """What a corpus comes to, counted or estimated; None where a sample cannot tell."""

    tokens: int
    documents: int
    distinct_tokens: int
    largest_id: int
    has_padding: bool  # whether what fills windows up is a token of the corpus too
    windows: WindowCounts
    replaced_sequences: int | None
    bad_records: int | None
    corpus_bytes: int
    tokens_error: int = 0
    sampled_bytes: int | None = None
    obstacle: str | None = None


def plan(config: JobConfig, reporter: Reporter, *, exact: bool = False) -> Plan:
    """Count, or estimate from a sample, what `run` would do with the same options.

    Of a model's folder config.json is enough; what is wrong with its tensors is an obstacle.

    Args:
        exact: tokenise the whole corpus however large it is, as is done with a small one.

    Raises:
        QkvmillError: if options, corpus or a file of weights would stop the run.
    """
    corpus = find_files(
        config.corpus, out=config.local_out, format=config.format,
        skip_empty=config.bad_records == "skip",
    )  # fmt: skip
    for line in notes(corpus):
        reporter.note(line)
    check_apart(config, corpus)
    tokenizer = tokenizer_of(config)
    check_exported(config.corpus, tokenizer)
    backend = choose_backend(config, reporter)
    model = model_of(config, tokenizer, reporter)
    source = model or load_weights(config, None)
    totals = None if exact else _sampled(config, corpus, tokenizer, reporter)
    if totals is None:
        totals = _counted(config, corpus, tokenizer, reporter)
    counts = totals.windows
    check_counts(config, counts)
    drawn = config.sampling == "random"
    windows = config.batch_size * config.random_batches if drawn else counts.windows
    padding = padding_of(config, tokenizer) if counts.padded_windows else None
    largest = max(totals.largest_id, padding or 0)
    distinct = totals.distinct_tokens + (padding is not None and not totals.has_padding)
    shape = layer_shape(config, source, tokenizer, largest)
    method = decide(config, shape, largest, distinct, windows, backend)
    size = sizes(
        config, shape, method, tokens=totals.tokens, documents=totals.documents,
        distinct=distinct, windows=windows,
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
    building = 0
    if shape and size.table_bytes:
        building = build_bytes(
            rows=distinct + shape.positions, d_model=shape.d_model, total_width=shape.total_width
        )
    reads: tuple[Reads, ...] = ()
    if model is not None:
        reads = first_layer_reads(model.d_model, model.q_width, model.kv_width)
    held = max(rounding, size.table_bytes + max(building, buffers))
    sampled = totals.sampled_bytes is not None
    shard_bytes = per_shard * window_bytes(plans)
    obstacles = [totals.obstacle, _obstacle(config, size, shard_bytes, windows, per_shard)]
    return Plan(
        exact=not sampled,
        sampled_bytes=totals.sampled_bytes,
        documents=totals.documents,
        skipped_files=corpus.skipped_files,
        replaced_sequences=totals.replaced_sequences,
        bad_records=totals.bad_records,
        corpus_bytes=totals.corpus_bytes,
        tokens=totals.tokens,
        tokens_error=totals.tokens_error,
        distinct_tokens=totals.distinct_tokens,
        windows=windows,
        boundaries=config.boundaries,
        tail=config.tail,
        padded_windows=counts.padded_windows,
        padded_places=counts.padded_places,
        dropped_tokens=None if drawn or sampled else totals.tokens - counts.held_tokens,
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
        obstacle="; ".join(filter(None, obstacles)) or None,
        scheme=SCHEME if reads else None,
        reads=reads,
    )


def _counted(
    config: JobConfig, corpus: Corpus, tokenizer: Tokenizer, reporter: Reporter
) -> _Counts:
    """Counts of a corpus that is read and tokenised as a whole."""
    counter = WindowCounter(rule_of(config))
    totals = tokenise(config, corpus, tokenizer, counter, reporter)
    return _Counts(
        has_padding=padding_of(config, tokenizer) in totals.seen,
        windows=counter.close(),
        tokens=totals.tokens,
        documents=totals.documents,
        distinct_tokens=len(totals.seen),
        largest_id=totals.largest_id,
        replaced_sequences=totals.replaced_sequences,
        bad_records=totals.bad_records,
        corpus_bytes=sum(file["bytes"] for file in totals.files),
    )


def _sampled(
    config: JobConfig, corpus: Corpus, tokenizer: Tokenizer, reporter: Reporter
) -> _Counts | None:
    """Estimates from a sample of a corpus; None where it is to be read as a whole."""
    if needs_no_sample(corpus):
        return None
    found = estimate(config, corpus, tokenizer, reporter)
    if found is None:
        reporter.note("no record begins in a sample of the corpus, so all of it is read")
        return None
    windows = _estimated_windows(config, found)
    if not windows.windows:
        reporter.note("no window begins in a sample of the corpus, so all of it is read")
        return None
    if found.bad_records and config.bad_records == "skip":
        reporter.note(f"the sample holds {found.bad_records} bad records, which are skipped")
    largest = found.largest_id
    if config.vocab_size == "corpus":
        largest = max(largest, tokenizer.rows_needed - 1)  # what the rest holds is not known
    return _Counts(
        has_padding=padding_of(config, tokenizer) is not None and found.documents > 1,
        windows=windows,
        tokens=found.tokens,
        documents=found.documents,
        distinct_tokens=found.distinct_tokens,
        largest_id=largest,
        replaced_sequences=None,
        bad_records=None,
        corpus_bytes=corpus.bytes,
        tokens_error=found.tokens_error,
        sampled_bytes=found.sampled_bytes,
        obstacle=found.obstacle,
    )


def _estimated_windows(config: JobConfig, found: Estimate) -> WindowCounts:
    """The windows of an estimated stream; of its documents, as many of each length as is likely."""
    rule = rule_of(config)
    if not rule.split:
        return count_more(WindowCounts(), torch.tensor([found.tokens]), rule)
    whole = replace(rule, most=None)
    sums = dict.fromkeys(("windows", "padded_windows", "padded_places", "held_tokens",
                          "fruitful_spans"), 0.0)  # fmt: skip
    longest = 0
    for length, weight in zip(found.lengths.tolist(), found.weights.tolist(), strict=True):
        counts = count_more(WindowCounts(), torch.tensor([length]), whole)
        for name in sums:
            sums[name] += weight * getattr(counts, name)
        longest = max(longest, counts.longest_span)
    scaled = {name: round(value) for name, value in sums.items()}
    if rule.most is not None:
        scaled["windows"] = min(scaled["windows"], rule.most)
        scaled["padded_windows"] = min(scaled["padded_windows"], rule.most)
    return WindowCounts(**scaled, longest_span=longest)


def _obstacle(
    config: JobConfig, size: Sizes, shard_bytes: int, windows: int, per_shard: int
) -> str | None:
    """What would stop a run at --out, or a model without tensors, in the words of the run."""
    try:
        if config.weights is not None and os.path.isdir(config.weights):
            check_checkpoint(config.weights, context_length=config.context_length)
        check_claim(config.out, overwrite=config.overwrite)
        check_room(config, size, shard_bytes)
        check_shards(config, windows, per_shard)
    except (ConfigError, ExportError, WeightsError) as error:
        return str(error)
    return None
