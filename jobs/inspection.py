"""What `inspect` is asked, checked, and the records that it answers with."""

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from exporters.bucket import Place
from exporters.contents import exported_tensors, window_bytes
from exporters.errors import ExportError
from exporters.manifest import Manifest
from exporters.nearest import did_you_mean
from exporters.reading import PROJECTED, Export, open_stream
from exporters.tablefile import table_tensors
from jobs.errors import ConfigError
from jobs.progress import Reporter
from jobs.tensorstats import Moments, merged, moments_of
from jobs.tokenizer import Tokenizer

ROWS = ("x", "y")  # of a window, shown unless others are named
BATCH_BYTES = 32 << 20  # of windows that statistics read at once


@dataclass(frozen=True, kw_only=True)
class Question:
    """The options of `inspect`.

    Raises:
        ConfigError: if options have no effect together.
    """

    window: int | None = None
    head: int | None = None
    tensors: tuple[str, ...] = ()
    stats: bool = False
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.head is not None:
            raise ConfigError("--head has no effect without --window; give the window too")
        if self.window is None and self.tensors and not self.stats:
            raise ConfigError(
                "--tensor has no effect without --window or --stats; give one of them"
            )
        if self.window is None and self.tokenizer is not None:
            raise ConfigError("--tokenizer has no effect without --window; leave it out")
        if self.stats:
            for name in ("head", "tokenizer"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name} has no effect with --stats; leave one out")


def open_window(export: Export, index: int) -> dict[str, Tensor]:
    """The tensors of a window.

    Raises:
        ExportError: if there is no such window, or it cannot be read.
    """
    if not 0 <= index < len(export):
        raise ExportError(
            f"{export.root} has windows 0 to {len(export) - 1}; --window {index} is none of them"
        )
    return export[index]


def window_record(
    root: Place,
    manifest: Manifest,
    index: int,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """A window's ids and texts, read from the token stream, for people and for --json.

    Texts are of the real places only, and None without a tokenizer; ids are of all.
    """
    length = manifest.windows["context_length"]
    stream = open_stream(root, manifest)
    start = int(tensors["window_start"])
    pairs = int(tensors["mask"].sum()) if "mask" in tensors else length
    if start < 0 or pairs < 1 or start + pairs >= stream.tokens:
        raise ExportError(f"{root}: window {index} begins beyond its {stream.tokens} tokens")
    ids = stream.read(start, start + pairs + 1).tolist()
    padding = [manifest.padding] * (length - pairs)
    documents = stream.documents(start, start + pairs).tolist()
    files = manifest.corpus["files"]
    ends = list(accumulate(file["documents"] for file in files))  # of each file's documents
    if not all(0 <= document < ends[-1] for document in documents):
        raise ExportError(f"{root}: window {index} is of a document that the manifest lacks")
    return {
        "window": index,
        "start": start,
        "documents": [
            {"index": document, "name": files[bisect_right(ends, document)]["name"]}
            for document in sorted(set(documents))
        ],
        "padded_places": len(padding),
        "input_ids": ids[:-1] + padding,
        "target_ids": ids[1:] + padding,
        "input_text": None if tokenizer is None else tokenizer.decode(ids[:-1]),
        "target_text": None if tokenizer is None else tokenizer.decode(ids[1:]),
        "tensors": {
            name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
            for name, t in tensors.items()
        },
    }


@dataclass(frozen=True)
class Rows:
    """Values of a window that are shown as a table: [T, d], [T, Dh], [T] or a single one."""

    values: Tensor
    head: int | None = None  # of q, or the key/value head of k and v
    heads: int | None = None  # how many there are


def rows_of(export: Export, window: Mapping[str, Tensor], question: Question) -> dict[str, Rows]:
    """The tables of a window: of the tensors that are named, else x, y and, with a head, q, k, v.

    k and v are of the key/value head that query head H uses, H // (heads / kv_heads).

    Raises:
        ConfigError: if a tensor has heads and none is named.
        ExportError: if there is no such tensor or head.
    """
    _check_names(f"a window of {export.root}", question.tensors, window)
    names = question.tensors or (*ROWS, *(PROJECTED if question.head is not None else ()))
    rows = {}
    for name in dict.fromkeys(name for name in names if name in window):
        if name in PROJECTED:
            rows[name] = _rows_of_head(export, name, window[name], question.head)
        else:
            rows[name] = Rows(window[name])
    if question.head is not None and not rows.keys() & set(PROJECTED):
        if question.tensors:
            raise ConfigError("--head is of q, k and v; name one as --tensor, or leave --head out")
        raise ExportError(f"{export.root} holds no q, k and v, so --head has no effect")
    return rows


def _rows_of_head(export: Export, name: str, tensor: Tensor, head: int | None) -> Rows:
    """[T, Dh] of q [H, T, Dh] or k, v [Hk, T, Dh], or with T before the heads."""
    if head is None:
        raise ConfigError(f"--tensor {name} has heads; give --head too, or --stats")
    layer = export.manifest.layer or {}
    heads, kv_heads = layer["heads"], layer["kv_heads"]
    if not 0 <= head < heads:
        raise ExportError(
            f"{export.root} has query heads 0 to {heads - 1}; --head {head} is none of them"
        )
    if name != "q":
        head, heads = head // (heads // kv_heads), kv_heads
    by_token = export.manifest.job["layout"] == "bthd"
    return Rows(tensor[:, head] if by_token else tensor[head], head, heads)


def stats_of(export: Export, question: Question, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Shape, dtype and statistics of the tensors that are named, or of all, by name.

    They are of all windows, W first in the shape, and of the tables of a compact export; or of one
    window alone. Windows are read a few at a time.

    Raises:
        ExportError: if there is no such window or tensor, or a file cannot be read.
    """
    if question.window is not None:
        window = open_window(export, question.window)
        _check_names(f"a window of {export.root}", question.tensors, window)
        return {
            name: _record(tensor.dtype, tensor.shape, moments_of(tensor))
            for name, tensor in window.items()
            if not question.tensors or name in question.tensors
        }
    plans = exported_tensors(export.manifest)
    tables = table_tensors(export.tables()) if export.manifest.compact else {}
    _check_names(str(export.root), question.tensors, [*plans, *tables])
    if question.tensors:
        plans = {name: plan for name, plan in plans.items() if name in question.tensors}
        tables = {name: table for name, table in tables.items() if name in question.tensors}
    per_window = window_bytes(plans)
    total = len(export) * per_window + sum(table.nbytes for table in tables.values())
    found: dict[str, dict[str, Any]] = {}
    with reporter.stage("stats", total, "bytes") as advance:
        if plans:
            moments = dict.fromkeys(plans, Moments())
            batch = max(1, BATCH_BYTES // per_window)
            for tensors in export.batches(batch, names=plans):
                for name, tensor in tensors.items():
                    moments[name] = merged(moments[name], moments_of(tensor))
                    advance(tensor.nbytes)
            for name, plan in plans.items():
                found[name] = _record(plan.dtype, (len(export), *plan.shape), moments[name])
        for name, table in tables.items():
            found[name] = _record(table.dtype, table.shape, moments_of(table))
            advance(table.nbytes)
    return found


def _record(dtype: Any, shape: tuple[int, ...], moments: Moments) -> dict[str, Any]:
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
        **moments.record(),
    }


def _check_names(holder: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise ExportError for a tensor that there is none of."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise ExportError(f"{holder} holds no tensor {name!r}{hint}")
