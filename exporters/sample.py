"""Recomputes windows of a committed export in float64, from its token stream and its weights."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from exporters.bucket import Place
from exporters.contents import exported_tensors
from exporters.coverage import find
from exporters.errors import ExportError
from exporters.files import local_copy
from exporters.layerfile import load_layer
from exporters.manifest import MANIFEST, Manifest, garbled_is_damaged, read_manifest
from exporters.reading import open_export, open_stream
from exporters.shards import DTYPE_NAMES
from exporters.strays import WEIGHTS
from exporters.tablefile import TABLES
from exporters.tokens import TokenStream
from exporters.windows import STARTS, spans_of
from kernels import reference
from kernels.layer import FirstLayer

SEED = 0
MEASURE = 4096  # tokens of which torch's error is a fair measure; of a few it may be too small
COMPUTED = ("x", "y", "q", "k", "v")
SCALARS = ("vocabulary_size", "d_model", "heads", "kv_heads", "head_dim", "norm", "eps",
           "norm_offset", "qk_norm", "positions", "rotary_dims", "rotary_interleaved",
           "embedding_scale")  # fmt: skip
TF32_BITS = -(1 << 13)  # of a float32, without the 13 last bits of the fraction


def draw(root: Place, count: int) -> tuple[int, ...]:
    """`count` windows of an export, or all if it has no more, the same ones each time.

    They are `torch.randperm(windows, generator=torch.Generator().manual_seed(0))[:count]`, so that
    a larger sample holds the smaller one.

    Raises:
        ExportError: if root holds no committed export.
    """
    with garbled_is_damaged(root):
        windows = read_manifest(root).windows["count"]
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(SEED))
        return tuple(sorted(order[:count].tolist()))


def recompute(
    root: Place, windows: tuple[int, ...], advance: Callable[[int], None]
) -> tuple[str, ...]:
    """Compare windows with what plain torch computes in float64; returns every difference.

    Integers must be equal. Where window i begins follows from the stride and the documents, or from
    the seed as in `run --sampling random`. The error of x, y, q, k and v may be at most what
    `allowed_error` of kernels/reference.py gives for batches of MEASURE tokens: these windows,
    filled up with others of the stream. `advance` is told of windows. The files are taken to be as
    they were written: `verify` comes first.

    Raises:
        ExportError: if the weights that are needed are not stored or do not fit the manifest or the
            tokens, or a file cannot be read.
    """
    manifest = read_manifest(root)
    with garbled_is_damaged(root):
        export = open_export(root)
        stream = open_stream(root, manifest)
        layer = _layer(root, manifest)
        places = find(
            manifest, lambda: spans_of(stream, split=manifest.split), torch.tensor(windows)
        )
        step = max(1, MEASURE // int(manifest.windows["context_length"]))
        problems: list[str] = []
        errors: dict[tuple[int, str], float] = {}
        allowed = dict.fromkeys(COMPUTED, 0.0)
        for first in range(0, len(windows), step):
            batch = windows[first : first + step]
            stored = {index: export[index] for index in batch}
            integers = {
                index: _integers(stream, int(start), int(pairs), manifest)
                for index, start, pairs in zip(
                    batch,
                    places.start[first : first + step],
                    places.pairs[first : first + step],
                    strict=True,
                )
            }
            for index, expected in integers.items():
                problems += _different(stored[index], expected, manifest, index)
            if layer is not None:
                ids = _filled([_ids(tensors) for tensors in integers.values()], step, stream)
                _check_ids(root, layer, ids)
                for name, (torchs, truth) in _computed(layer, ids, manifest).items():
                    allowed[name] = max(allowed[name], reference.allowed_error(torchs, truth))
                    for row, index in enumerate(batch):
                        found = _by_head(stored[index][name], name, manifest)
                        errors[index, name] = reference.largest_error(found, truth[row])
            advance(len(batch))
    problems += [
        f"{_place(manifest, index, name)}: {name} is {error:.2g} from float64, "
        f"more than the {allowed[name]:.2g} that is right"
        for (index, name), error in errors.items()
        if not error <= allowed[name]  # NaN is not
    ]
    return tuple(problems)


def _layer(root: Place, manifest: Manifest) -> FirstLayer | None:
    """The stored layer in the dtype of the job; None where nothing is computed from one."""
    if not set(COMPUTED) & exported_tensors(manifest).keys():
        return None
    described = manifest.layer or {}
    if not manifest.of_kind("weights"):
        raise ExportError(
            f"{root} was made with --no-save-weights, so windows cannot be recomputed from it; "
            "verify it without --sample"
        )
    with local_copy(root / WEIGHTS) as file:
        layer = load_layer(file, context_length=manifest.windows["context_length"])
    stored = {name: getattr(layer, name) for name in SCALARS}
    stored["dtype"] = DTYPE_NAMES[layer.dtype]
    for name, value in stored.items():
        if value != described[name]:
            raise ExportError(
                f"{root / WEIGHTS} has {name} {value!r}, but {MANIFEST} says {described[name]!r}"
            )
    return layer


def _integers(stream: TokenStream, start: int, pairs: int, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of integers of the window of so many real pairs that begins at `start`."""
    stop, length = start + pairs, int(manifest.windows["context_length"])
    ids, padding = stream.read(start, stop + 1), torch.full((length,), manifest.padding or 0)
    documents = stream.documents(start, stop)
    return {
        "window_start": torch.tensor(start),
        "input_ids": torch.cat([ids[:-1], padding.int()])[:length],
        "target_ids": torch.cat([ids[1:], padding.int()])[:length],
        "document_ids": torch.cat([documents, documents[-1:].expand(length - pairs)]),
        "mask": torch.arange(length) < pairs,
    }


def _different(
    stored: dict[str, Tensor], expected: dict[str, Tensor], manifest: Manifest, index: int
) -> list[str]:
    """Which tensors of integers are not what the token stream gives."""
    return [
        f"{_place(manifest, index, name)}: {name} differs from the token stream in "
        f"{int((stored[name] != right).sum())} of {right.numel()} values"
        for name, right in expected.items()
        if name in stored and not torch.equal(stored[name], right)
    ]


def _ids(integers: dict[str, Tensor]) -> Tensor:
    """Inputs and targets [2, T] of a window."""
    return torch.stack([integers["input_ids"], integers["target_ids"]])


def _check_ids(root: Place, layer: FirstLayer, ids: Tensor) -> None:
    """Raise ExportError if a token has no row in the embedding."""
    for token in (int(ids.min()), int(ids.max())):
        if not 0 <= token < layer.vocabulary_size:
            raise ExportError(
                f"the tokens of {root} hold {token}, but its {WEIGHTS} has rows for 0 to "
                f"{layer.vocabulary_size - 1}"
            )


def _filled(own: list[Tensor], windows: int, stream: TokenStream) -> Tensor:
    """Ids [W, 2, T] of windows and, up to so many, of those at random places of the stream.

    Of a few tokens torch's error may be luckily small, and other kernels of torch multiply them.
    """
    length = own[0].shape[1]
    generator = torch.Generator().manual_seed(SEED)
    # Where the stream is shorter than a window, ids of it are taken again.
    high = max(1, stream.tokens - length)
    starts = torch.randint(high, (windows - len(own),), generator=generator)
    others = []
    for start in starts.tolist():
        ids = stream.read(start, min(start + length + 1, stream.tokens))
        ids = ids[torch.arange(length + 1) % len(ids)]
        others.append(torch.stack([ids[:-1], ids[1:]]))
    return torch.stack([*own, *others])


def _computed(
    layer: FirstLayer, ids: Tensor, manifest: Manifest
) -> dict[str, tuple[Tensor, Tensor]]:
    """x, y [W, T, d], q [W, H, T, Dh] and k, v [W, Hk, T, Dh] of ids [W, 2, T].

    Each is a pair: from torch in the dtype of the layer, and in float64.
    """
    # Only the rows of E that are used are widened.
    rows, places = torch.unique(ids.long(), return_inverse=True)
    layer = replace(layer, embedding=layer.embedding[rows])
    exact = reference.in_float64(layer)
    inputs, targets = places.unbind(1)
    pairs = {}
    if "features" in manifest.job["export"]:
        for name, tokens in (("x", inputs), ("y", targets)):
            pairs[name] = (reference.embed(layer, tokens), reference.embed(exact, tokens))
    if "qkv" in manifest.job["export"]:
        tf32 = (manifest.compute or {})["precision"] == "tf32"
        torchs = _project_in_tf32(layer, inputs) if tf32 else reference.project(layer, inputs)
        pairs |= zip("qkv", zip(torchs, reference.project(exact, inputs), strict=True), strict=True)
    return pairs


def _project_in_tf32(layer: FirstLayer, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """reference.project with both factors of the product cut to TF32, as a GPU cuts them."""

    def cut(tensor: Tensor) -> Tensor:
        return (tensor.contiguous().view(torch.int32) & TF32_BITS).view(torch.float32)

    z = reference.normalise(layer, reference.embed(layer, ids))
    product = replace(
        layer,
        embedding=cut(z).flatten(0, 1),
        q_weight=cut(layer.q_weight),
        k_weight=cut(layer.k_weight),
        v_weight=cut(layer.v_weight),
        position=None,
        positions="none" if layer.rotary is None else "rope",
        norm="none",
        norm_weight=None,
        norm_bias=None,
        embedding_scale=1.0,
    )
    return reference.project(product, torch.arange(ids.numel()).view(ids.shape))


def _by_head(found: Tensor, name: str, manifest: Manifest) -> Tensor:
    """A stored tensor of one window as it is computed, whatever the layout."""
    by_token = manifest.job["layout"] == "bthd" and name in ("q", "k", "v")
    return found.transpose(0, 1) if by_token else found


def _place(manifest: Manifest, index: int, name: str) -> str:
    """The file that a tensor of a window is read or computed from, and the window."""
    file = STARTS if manifest.lists_starts else MANIFEST
    if not manifest.compact:
        file = next(
            entry.name
            for entry in manifest.of_kind("windows")
            if entry.first <= index < entry.first + entry.count
        )
    elif name in COMPUTED:
        file = WEIGHTS if name in ("x", "y") else TABLES
    return f"{file}: window {index}"
