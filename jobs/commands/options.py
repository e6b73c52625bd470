"""The options that commands share: defaults and help."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
from click import argument, option
from click.shell_completion import CompletionItem

from jobs.commands.configfile import read_config
from jobs.commands.types import Choice, PlaceOrUrl, SafePath, Size
from jobs.config import D_MODEL, EXPORTS, HEADS, Format
from jobs.tokenizer import ENCODINGS
from kernels.names import DTYPE_NAMES


def examples(*commands: str) -> str:
    """The end of a command's help: commands to try, a line each."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


scratch_option = option("--scratch",
                        type=SafePath(path_type=Path, exists=True, file_okay=False),
                        show_default="the system's for temporary files",
                        help="Folder for files on their way to a bucket.")  # fmt: skip

device_option = option("--device", metavar="[auto|cpu|cuda|cuda:N]", default="auto",
                       show_default=True, help="Where to compute.")  # fmt: skip


def _tokenizers(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The encodings that begin so; else the shell is told to look for files."""
    named = [CompletionItem(name) for name in ENCODINGS if name.startswith(incomplete)]
    return named or [CompletionItem(incomplete, type="file")]


def job_options(command: Callable[..., None], *, needed: bool = True) -> Callable[..., None]:
    """The options that `run` and `plan` share, in the order in which help shows them.

    `needed` says that there is no job without a corpus and a place for the export.
    """
    path = SafePath(path_type=Path)
    options = [
        argument("corpus", nargs=-1, required=needed, type=SafePath(allow_dash=True)),
        option("--out", required=needed, type=PlaceOrUrl(path_type=Path),
                     show_default=False if needed else "none; CORPUS needs one",
                     help="Folder of the export, or s3://bucket/prefix or another URL."),
        scratch_option,
        option("--config", type=path, is_eager=True, expose_value=False, callback=read_config,
                     help="TOML file with any of these options by name; flags win over it."),
        option("--tokenizer", shell_complete=_tokenizers,
                     show_default="the folder that --weights names, else cl100k_base",
                     help=f"One of {', '.join(ENCODINGS)}; or the folder of a model or its "
                     "tokenizer.json."),
        option("--separator", type=Choice(["eot", "none"]), default="eot", show_default=True,
                     help="What stands between documents: the end-of-text token or nothing."),
        option("--format", type=Choice(get_args(Format)), show_default="by each file's name",
                     help="Read all files as this, and standard input, which is text else."),
        option("--text-field", default="text", show_default=True,
                     help="Field or column that holds the text; a.b is b within a."),
        option("--token-dtype", type=Choice(["uint16", "uint32"]),
                     show_default="uint16 where all ids fit it",
                     help="Type of the ids in .bin files."),
        option("--bad-records", type=Choice(["fail", "skip"]), default="fail", show_default=True,
                     help="Lines and rows that hold no text, and empty files: stop, or leave "
                     "them out and count them."),
        option("--max-record-bytes", type=Size(), default="64MiB", show_default=True,
                     help="Most bytes of a line or row of JSON lines, CSV, TSV or Parquet."),
        option("--workers", type=click.IntRange(1, 1024),
                     show_default="one for each core; 1 for a small corpus",
                     help="Processes that tokenize; with --engine ray, workers of all stages."),
        option("--engine", type=Choice(["local", "ray"]), default="local", show_default=True,
                     help="Do the stages on this machine, or on the workers of a Ray cluster."),
        option("--ray-address", metavar="ADDRESS",
                     show_default="RAY_ADDRESS, else a cluster of this machine alone",
                     help="The cluster: auto for the one that this machine belongs to, or "
                     "HOST:PORT."),
        option("--text-errors", type=Choice(["strict", "replace"]), default="strict",
                     show_default=True,
                     help="Bytes that are not UTF-8: stop, or put U+FFFD and count them."),
        option("--context-length", type=int, default=1024, show_default=True,
                     help="Tokens in a window, T."),
        option("--sampling", type=Choice(["sequential", "random"]), default="sequential",
                     show_default=True, help="Windows in order, or drawn with torch.randint."),
        option("--stride", type=int, show_default="the context length",
                     help="Tokens from one sequential window to the next."),
        option("--boundaries", type=Choice(["ignore", "split"]), default="ignore",
                     show_default=True,
                     help="Windows run over the ends of documents, or each lies within one."),
        option("--tail", type=Choice(["drop", "pad"]), default="drop", show_default=True,
                     help="What is left of a document, or of the stream, behind its last whole "
                     "window: drop it, or fill a window up with the end-of-text token and export "
                     "mask, true where input and target are real."),
        option("--batch-size", type=int, default=8, show_default=True,
                     help="Windows in a batch; a shard holds whole batches."),
        option("--batches", type=int, show_default="all, or 1 with random sampling",
                     help="Batches to export."),
        option("--seed", type=int, default=0, show_default=True,
                     help="Seed of the layer's parameters and of random sampling."),
        option("--weights", type=path, show_default="a layer that --seed makes",
                     help="The layer of a model's folder (config.json and safetensors), or of one "
                     ".safetensors file."),
        option("--d-model", type=int, show_default=f"{D_MODEL}, or as in --weights",
                     help="Model width, d."),
        option("--heads", type=int, show_default=f"{HEADS}, or as in --weights",
                     help="Query heads, H."),
        option("--kv-heads", type=int, show_default="the heads, or as in --weights",
                     help="Key/value heads, Hk."),
        option("--positions", type=Choice(["sinusoidal", "learned", "rope", "none"]),
                     show_default="sinusoidal, or as in --weights",
                     help="Positions: a table that is added to the embedding, or rope, by which q "
                     "and k turn."),
        option("--pre-rope", is_flag=True,
                     help="Export q and k as they are before they turn by rotary positions."),
        option("--vocab-size", metavar="[encoding|corpus|N]", show_default="encoding",
                     help="Rows of the embedding that the seed makes; corpus: largest id + 1."),
        option("--export", multiple=True, type=Choice(EXPORTS), default=("tokens", "qkv"),
                     show_default=True,
                     help="What shards hold (repeatable): tokens (input, target and document ids), "
                     "features (x and y), qkv (q, k and v)."),
        option("--artifact", type=Choice(["full", "compact"]), default="full", show_default=True,
                     help="full: every window, in shards. compact: the token stream and the tables "
                     "that q, k and v are made from; expand makes it full."),
        option("--method", type=Choice(["auto", "direct", "tables"]), default="auto",
                     show_default=True,
                     help="How q, k and v are computed: token by token, or from tables of the "
                     "projected vocabulary and positions. auto: tables where they pay."),
        option("--save-weights/--no-save-weights", default=True, show_default=True,
                     help="Store the layer beside the export; without, its hash and source."),
        option("--dtype", type=Choice(DTYPE_NAMES), default="float32", show_default=True,
                     help="Of the layer and of the features, q, k and v."),
        option("--layout", type=Choice(["bhtd", "bthd"]), default="bhtd", show_default=True,
                     help="q, k and v as [W, H, T, Dh] or as [W, T, H, Dh]."),
        device_option,
        option("--tf32", is_flag=True,
                     help="On a GPU and by --method direct, float32 products on TF32 tensor cores: "
                     "faster, less exact."),
        option("--shard-size", type=Size(), default="512MB", show_default=True,
                     help="Most bytes of tensors in one shard."),
        option("--overwrite", is_flag=True,
                     help="Replace a finished export at --out, or an unfinished one of another "
                     "job."),
    ]  # fmt: skip
    for add in reversed(options):
        command = add(command)
    return command


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """--quiet and --json."""
    command = option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)
    return option("--quiet", is_flag=True, help="Print nothing but errors and --json.")(command)


verbose_option = option("-v", "--verbose", is_flag=True,
                        help="Log what is done, and why, to stderr, with times.")  # fmt: skip
