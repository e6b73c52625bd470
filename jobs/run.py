"""The life of a job: corpus -> tokens -> windows -> (direct | tables) -> shards -> manifest."""

from datetime import UTC, datetime
from functools import partial

from exporters.claims import claimed
from exporters.contents import window_bytes
from exporters.errors import WeightsError
from exporters.kept import discard
from exporters.manifest import Manifest, commit
from exporters.source import WindowSource, read_windows
from exporters.space import HEADROOM, check_space, readable
from exporters.state import check_claim
from exporters.strays import WORK, bytes_at
from exporters.tokens import TokenStream
from exporters.windows import WindowPlan
from jobs.apart import check_apart
from jobs.choose_tokenizer import check_exported, tokenizer_of
from jobs.compute import write_shards
from jobs.config import JobConfig
from jobs.engine import engine_of
from jobs.errors import ConfigError, CorpusError
from jobs.fingerprint import fingerprint
from jobs.inputs.files import find_files, notes
from jobs.inputs.spool import spool
from jobs.layers import check_ids, load_weights, make_layer, model_of
from jobs.layershape import LayerShape, layer_shape
from jobs.outputs import check_shards, shard_tensors, sizes, windows_per_shard
from jobs.parameters import make_parameters
from jobs.progress import Reporter
from jobs.record import Summary, manifest_of, summary, write_run
from jobs.resume import finished, keep_method, kept_method, say_what_is_kept
from jobs.room import check_room
from jobs.starts import write_starts
from jobs.stream import changed_file, token_entry, write_stream
from jobs.tokenizer import Tokenizer
from jobs.windows import ids_to_compute, padding_of, plan_windows
from kernels.dispatch import Backend, choose
from kernels.errors import MethodError
from kernels.layer import DTYPES, FirstLayer
from kernels.method import Method, choose_method

HOPELESS = (ConfigError, CorpusError, MethodError, WeightsError)
"""What the same command, with the same inputs, can only come to again."""


def run(config: JobConfig, reporter: Reporter) -> Summary:
    """Do the whole job and commit the export at config.out.

    Raises:
        QkvmillError: if the options, the corpus, the weights or the disk prevent it. What is
            finished is then kept at config.out, visibly unfinished; where that is nothing, nothing
            of ours is left. With --overwrite, what it replaces is gone once the work has begun.
    """
    started = datetime.now(UTC)
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
    loaded = load_weights(config, model)
    job = fingerprint(config, corpus, tokenizer, model, loaded, backend)

    def changed_input(manifest: Manifest) -> str | None:
        return changed_file(corpus, manifest.corpus["files"], reporter)

    if not config.overwrite and (done := finished(config.out, job, changed_input, reporter)):
        return summary(config.out, done, reporter)
    found = check_claim(config.out, overwrite=config.overwrite)
    if config.local_out is not None:
        needed = bytes_known_before(config, loaded, tokenizer)
        check_space(config.local_out, needed - bytes_at(config.local_out) + HEADROOM)

    with (
        claimed(config.out, job, overwrite=config.overwrite, scratch=config.scratch) as work,
        engine_of(config, tokenizer, backend, reporter) as engine,
    ):
        say_what_is_kept(work, found, reporter)
        corpus = spool(
            corpus, work.root / WORK, reporter.note, reporter.check, overwrite=config.overwrite
        )
        totals, parts = write_stream(config, corpus, tokenizer, work, reporter, engine)
        stream = TokenStream(work.root, parts)
        padding = padding_of(config, tokenizer)
        try:
            windows = plan_windows(config, stream, totals.documents, padding)
            ids = ids_to_compute(totals.seen, windows.padded_windows, padding)
            largest = int(ids[-1])
            shape = layer_shape(config, loaded, tokenizer, largest)
            method = kept_method(work, config) or decide(
                config, shape, largest, len(ids), windows.count, backend
            )
            plans = shard_tensors(config, shape)
            per_shard = windows_per_shard(plans, config.shard_size, config.batch_size)
            check_shards(config, windows.count, per_shard)
        except HOPELESS:
            discard(work)
            raise
        keep_method(work, method)
        size = sizes(
            config, shape, method, tokens=totals.tokens, documents=totals.documents,
            distinct=len(ids), windows=windows.count,
        )  # fmt: skip
        check_room(config, size, per_shard * window_bytes(plans), work.bytes_at_root())
        _say_what_differs(config, windows, window_bytes(plans), reporter)

        entries = [token_entry(part) for part in parts]
        parameters = None
        if backend is not None:
            with reporter.stage("layer", 1, "layer") as advance:
                layer = loaded or make_layer(config, tokenizer, largest)
                advance(1)
            parameters = make_parameters(
                work, config, model, layer, ids, method, backend, reporter, engine.build
            )
            entries += parameters.entries
            del layer, loaded  # files of shards are about to need the memory
        windows, starts = write_starts(work, config, windows, stream, reporter)
        entries += starts
        if config.artifact == "full":
            source = WindowSource(
                read=partial(read_windows, windows, stream),
                context_length=config.context_length,
                layout=config.layout,
                backend=backend,
                layer=parameters.layer if parameters else None,
                tables=parameters.tables if parameters else None,
            )
            entries += write_shards(
                work, source, plans, windows.count, per_shard, reporter, engine.make
            )

        manifest = manifest_of(config, corpus, tokenizer, totals, windows, parameters, entries)
        reporter.check()
        work.journal.check_finished()
        write_run(config.out, started, reporter)
        commit(config.out, manifest)
    return summary(config.out, manifest, reporter)


def choose_backend(config: JobConfig, reporter: Reporter) -> Backend | None:
    """The backend of a job, said aloud with its reason; None where nothing is computed."""
    if not config.needs_layer:
        return None
    backend = choose(config.device, DTYPES[config.dtype], tf32=config.tf32)
    reporter.note(backend.sentence())
    return backend


def decide(
    config: JobConfig,
    shape: LayerShape | None,
    largest_id: int,
    distinct: int,
    windows: int,
    backend: Backend | None,
) -> Method | None:
    """How q, k and v are computed; None where they are not.

    Raises:
        ConfigError, WeightsError: if a token has no row in the embedding.
        MethodError: if tables are asked for and cannot be had.
    """
    if shape is None or backend is None:
        return None
    check_ids(config, shape, largest_id)
    if "qkv" not in config.export:
        return None
    return choose_method(
        config.method,
        tokens=windows * config.context_length,
        rows=distinct + shape.positions,
        table_bytes=shape.table_bytes(distinct),
        d_model=shape.d_model,
        normed_sums=shape.normed_heads and shape.positions > 0,
        device=backend.device,
        compact=config.artifact == "compact",
    )


def bytes_known_before(config: JobConfig, loaded: FirstLayer | None, tokenizer: Tokenizer) -> int:
    """The bytes of output that are certain before the corpus is read."""
    shape = layer_shape(config, loaded, tokenizer, None)
    windows = config.batch_size * config.random_batches if config.sampling == "random" else 0
    known = sizes(config, shape, None, tokens=0, documents=0, distinct=0, windows=windows)
    return known.total_bytes


def _say_what_differs(
    config: JobConfig, windows: WindowPlan, bytes_per_window: int, reporter: Reporter
) -> None:
    """Say where the outcome is not what the options may have led to expect."""
    if bytes_per_window > config.shard_size and config.artifact == "full":
        reporter.note(
            f"a window takes {readable(bytes_per_window)}, more than --shard-size: "
            "each shard holds one window"
        )
    if config.batches is not None and windows.count < config.batches * config.batch_size:
        reporter.note(
            f"the corpus gives {windows.count} windows, fewer than --batches {config.batches} "
            f"of {config.batch_size}"
        )
