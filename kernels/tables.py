"""Method `tables`: project the vocabulary and the positions once, then only gather and add.

W is linear, so for x = s * E[t] + P[p] the projection of a sum is the sum of two projections:

    [q | k | v] = r(t, p) * (A[t] + B[p]) + c

    no norm     A = s E W^T + b, B = P W^T, r = 1, c = 0
    rmsnorm     A = s E W'^T, B = P W'^T, W' = W diag(gamma), r = 1 / sqrt(mean(x^2) + eps), c = b
    layernorm   the same of centred rows, since W diag(gamma) (x - mean(x)) is linear too;
                r = 1 / sqrt(var(x) + eps), c = W beta + b

Without added positions A[t] is finished, but for the turning of q and k by rotary positions, which
is done to each row as it is combined. The mean of P over its positions is moved from B to A, so
that offsets of E and P that cancel do so before anything is rounded. A and B are computed in
float64 and rounded once, to float32. r is computed from x itself, since the squares of E[t] and
P[p] and their product would lose what cancels between them; and the few rows where E[t] and P[p]
nearly cancel, which A + B could not give exactly, are computed from x altogether.

A and B are kept by head, as q, k and v are wanted: the rows of one head, unlike those of all F
columns, stay in the caches while every token is looked up in them.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.alone import each_alone
from kernels.errors import LayerError
from kernels.layer import FirstLayer, Norm
from kernels.rotary import Rotary

BUILD_ROWS = 512  # of A and B that are computed at once, always as many: bits hang on nothing else
LEAST_WIDTH = 8  # of d: below it, results of a few terms are exact in torch more often than here
NORMED_SUMS = "q and k are normalised after a position was added, which is no sum of two tables"
LOST = 0.5  # of the larger addend's norm: where the sum's is less, digits of A + B cancel


@dataclass(frozen=True, kw_only=True)
class NormTables:
    """What the norm of a sum needs: x by its two addends, and what comes after the norm.

    Lengths are of what A and B project: of the rows, centred for layernorm, after the mean of the
    positions was moved.
    """

    token_features: Tensor  # float32 [U, d]: s E[t]
    position_features: Tensor  # float32 [T, d]: P[p]
    token_means: Tensor | None  # float32 [U]; None for rmsnorm, which subtracts none
    position_means: Tensor | None  # float32 [T]
    token_lengths: Tensor  # float32 [U]
    position_lengths: Tensor  # float32 [T]
    weight: Tensor  # float32 [F, d]: W'
    constant: Tensor  # float32 [F]: c
    eps: float

    def means(self, rows: Tensor) -> Tensor | None:
        """The mean of x for rows of A [W, T], float32 [W, T]; None where none is subtracted."""
        if self.token_means is None or self.position_means is None:
            return None
        return self.token_means[rows.long()] + self.position_means[: rows.shape[1]]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A, B and what r and c need, for the tokens of one corpus and T positions.

    token_ids are on the CPU; the rest is on the device that combines.
    """

    token_ids: Tensor  # int32 [U], ascending
    token_table: Tensor  # float32 [H + 2 Hk, U, Dh]: A, by head: q's heads, then k's, then v's
    position_table: Tensor | None  # float32 [H + 2 Hk, T, Dh]: B; None where A is finished
    norm: NormTables | None  # None where r is 1 or A is finished
    rotary: Rotary | None  # how q and k of finished rows turn
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """The heads of q, of k and of v, in the order in which they stand in A, B and c."""
        return self.heads, self.kv_heads, self.kv_heads

    @property
    def total_width(self) -> int:
        """F: the widths of q, k and v together."""
        return sum(self.head_counts) * self.head_dim

    def check_length(self, context_length: int) -> None:
        """Raise ValueError if windows of so many tokens are longer than the positions."""
        place = self.position_table if self.rotary is None else self.rotary.cos
        if place is not None and context_length > place.shape[-2]:
            raise ValueError(f"{context_length} tokens a window, but {place.shape[-2]} positions")

    @cached_property
    def _row_of(self) -> Tensor:
        """The row of A for each id up to the largest, int32; -1 where there is none."""
        row_of = torch.full((int(self.token_ids[-1]) + 1,), -1, dtype=torch.int32)
        row_of[self.token_ids.long()] = torch.arange(len(self.token_ids), dtype=torch.int32)
        return row_of

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of A for ids on the CPU, int32, of the same shape.

        Raises:
            LayerError: if an id has no row.
        """
        known = (ids >= 0) & (ids < len(self._row_of))
        rows = self._row_of[torch.where(known, ids, 0).long()]
        missing = ~known | (rows < 0)
        if bool(missing.any()):
            raise LayerError(f"the tables have no row for token {int(ids[missing][0])}")
        return rows

    def on(self, device: torch.device) -> "Tables":
        """The same tables on a device."""
        norm = self.norm
        if norm is not None:
            values = {field.name: getattr(norm, field.name) for field in fields(norm)}
            moved = {n: t.to(device) for n, t in values.items() if isinstance(t, Tensor)}
            norm = replace(norm, **moved)  # type: ignore[arg-type]
        position = self.position_table
        return replace(
            self,
            token_table=self.token_table.to(device),
            position_table=None if position is None else position.to(device),
            norm=norm,
            rotary=None if self.rotary is None else self.rotary.on(device),
        )


def table_bytes(
    *, tokens: int, positions: int, d_model: int, total_width: int, norm: Norm, angles: int = 0
) -> int:
    """Bytes of the tables for so many distinct tokens and added positions, which are 0 for none.

    `angles` counts the values of cos and sin, 2 * T * R/2.
    """
    rows = tokens + positions
    values = rows * total_width + tokens + angles
    if norm != "none" and positions:
        statistics = 2 if norm == "layernorm" else 1
        values += rows * (d_model + statistics) + total_width * (d_model + 1)
    return 4 * values


def build_bytes(*, rows: int, d_model: int, total_width: int) -> int:
    """Bytes beside the tables while so many rows of them are built on a CPU, in float64.

    W' is held once, and each thread has a block of x, what it projects, and the product.
    """
    threads = min(torch.get_num_threads(), -(-rows // BUILD_ROWS))
    return 8 * (d_model * total_width + threads * BUILD_ROWS * (3 * d_model + total_width))


def build(
    layer: FirstLayer,
    token_ids: Tensor,
    device: torch.device,
    advance: Callable[[int], None] = lambda rows: None,
) -> Tables:
    """The tables of a layer for token_ids, int32 [U] ascending on the CPU, made on a device.

    Row A[t] hangs on the layer and t alone, row B[p] on the layer and p. `advance` is told of rows
    as they are done.

    Raises:
        LayerError: if the layer is narrower than LEAST_WIDTH, or q and k are normalised after a
            position was added: the norm of A[t] + B[p] is no sum.
    """
    if layer.d_model < LEAST_WIDTH:
        raise LayerError(
            f"tables need a width of {LEAST_WIDTH} or more to be as exact as direct, "
            f"but d-model is {layer.d_model}; give --method direct"
        )
    if layer.position is not None and (layer.q_norm is not None or layer.k_norm is not None):
        raise LayerError(f"{NORMED_SUMS}; give --method direct")
    weight, constant = (tensor.to(device) for tensor in _fold(layer))
    total_width, d = weight.shape

    own = threading.local()  # a thread's product, which the next one takes the place of

    def project(features: Tensor) -> Tensor:
        """features [n, d] W'^T, as a product of BUILD_ROWS rows whatever n is."""
        whole = features
        if len(features) < BUILD_ROWS:
            whole = F.pad(features, (0, 0, 0, BUILD_ROWS - len(features)))
        if not hasattr(own, "product"):
            own.product = weight.new_empty(BUILD_ROWS, total_width)
        return torch.mm(whole, weight.t(), out=own.product)[: len(features)]

    def each_block(work: Callable[[int, int], None], count: int) -> None:
        """Call `work` for blocks of BUILD_ROWS rows, and tell `advance` of each."""

        def one(block: tuple[int, int]) -> None:
            first, stop = block
            work(first, stop)
            advance(stop - first)

        if device.type == "cpu":
            each_alone(one, _blocks(count), count * weight.numel())
        else:
            for block in _blocks(count):
                one(block)

    def by_head(rows: Tensor) -> Tensor:
        """rows [n, F] as [H + 2 Hk, n, Dh]."""
        return rows.view(len(rows), -1, layer.head_dim).transpose(0, 1)

    def empty_table(rows: int) -> Tensor:
        return torch.empty(total_width // layer.head_dim, rows, layer.head_dim, device=device)

    position_table = addends = None
    shift = weight.new_zeros(d)
    if layer.position is not None:
        addends = _centred(layer, layer.position.to(device, torch.float64))
        shift = addends.mean(0)
        addends -= shift
        position_table = empty_table(len(addends))

        def make_b(first: int, stop: int) -> None:
            position_table[:, first:stop] = by_head(project(addends[first:stop]))

        each_block(make_b, len(addends))
    norm = None
    count = len(token_ids)
    if layer.norm != "none" and layer.position is not None and addends is not None:
        place = layer.position.to(device, torch.float32)
        centres = layer.norm == "layernorm"
        norm = NormTables(
            token_features=torch.empty(count, d, device=device),
            position_features=place,
            token_means=torch.empty(count, device=device) if centres else None,
            position_means=place.double().mean(1).float() if centres else None,
            token_lengths=torch.empty(count, device=device),
            position_lengths=_lengths(addends),
            weight=weight.float(),
            constant=constant.float(),
            eps=layer.eps,
        )
    token_table = empty_table(count)

    def make_a(first: int, stop: int) -> None:
        ids = token_ids[first:stop].long().to(layer.embedding.device)
        rows = layer.embedding.index_select(0, ids)
        x = rows.to(device, torch.float64) * layer.embedding_scale
        addend = _centred(layer, x) + shift
        if norm is not None:
            norm.token_features[first:stop] = x
            norm.token_lengths[first:stop] = _lengths(addend)
            if norm.token_means is not None:
                norm.token_means[first:stop] = x.mean(1)
            token_table[:, first:stop] = by_head(project(addend))
        else:
            if layer.norm != "none":
                addend *= (addend.square().mean(1, keepdim=True) + layer.eps).rsqrt()
            finished = project(addend).add_(constant)
            _normalise_heads(layer, finished)
            token_table[:, first:stop] = by_head(finished)

    each_block(make_a, count)
    return Tables(
        token_ids=token_ids,
        token_table=token_table,
        position_table=position_table,
        norm=norm,
        rotary=None if layer.rotary is None else layer.rotary.on(device),
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
    )


def join(parts: Sequence[Tables], token_ids: Tensor) -> Tables:
    """The tables of token_ids, int32 [U] ascending, from those of stretches of them, in order.

    They are as `build` makes them at once where each stretch but the last is of whole BUILD_ROWS.
    """
    first = parts[0]
    norm = first.norm
    if norm is not None:
        norms = [part.norm for part in parts if part.norm is not None]
        means = [part.token_means for part in norms if part.token_means is not None]
        norm = replace(
            norm,
            token_features=torch.cat([part.token_features for part in norms]),
            token_means=torch.cat(means) if means else None,
            token_lengths=torch.cat([part.token_lengths for part in norms]),
        )
    table = torch.cat([part.token_table for part in parts], 1)
    return replace(first, token_ids=token_ids, token_table=table, norm=norm)


def rescaling(norm: NormTables, rows: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """r(t, p), float32 [W, T], and where A + B would lose digits, as indices [n, 2] of (w, t).

    Args:
        rows: of A, int32 [W, T].
        squares: squared lengths of x, without its mean for layernorm, float64 [W, T].
    """
    d = norm.token_features.shape[1]
    scale = (squares / d + norm.eps).rsqrt().float()
    of_positions = norm.position_lengths[: rows.shape[1]]
    larger = torch.maximum(norm.token_lengths[rows.long()], of_positions)
    return scale, (squares < (LOST * larger.double()).square()).nonzero()


def recompute(tables: Tables, rows: Tensor, lost: Tensor, outputs: Sequence[Tensor | None]) -> None:
    """Write the tokens whose A[t] + B[p] cancels from x itself, one by one, in float64.

    Args:
        rows: of A, int32 [W, T].
        lost: indices (w, t) as `rescaling` gives them.
        outputs: q [W, H, T, Dh], k and v [W, Hk, T, Dh]; None for what is not wanted.
    """
    norm = tables.norm
    if norm is None or len(lost) == 0:
        return
    weight, constant = norm.weight.double(), norm.constant.double()
    for window, position in lost.tolist():
        x = norm.token_features[rows[window, position].long()].double()
        x += norm.position_features[position]
        if norm.token_means is not None:
            x -= x.mean()
        x *= (x.square().mean() + norm.eps).rsqrt()
        value = (torch.mv(weight, x) + constant).float().view(-1, tables.head_dim)
        by_tensor = torch.split(value, list(tables.head_counts))
        for output, heads in zip(outputs, by_tensor, strict=True):
            if output is not None:
                output[window, :, position] = heads


def _fold(layer: FirstLayer) -> tuple[Tensor, Tensor]:
    """W' [F, d] and c [F] (or b, where there is no norm), float64."""
    weights = [layer.q_weight, layer.k_weight, layer.v_weight]
    biases = [layer.q_bias, layer.k_bias, layer.v_bias]
    pairs = zip(weights, biases, strict=True)
    weight = torch.cat(weights).double()
    constant = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs]).double()
    if layer.norm_bias is not None:
        constant += weight @ layer.norm_bias.double()
    if layer.norm_weight is not None:
        weight *= layer.norm_weight.double() + layer.norm_offset
    return weight, constant


def _normalise_heads(layer: FirstLayer, rows: Tensor) -> None:
    """RMSNorm of q and k, in place, in float64 rows of A [n, F]."""
    widths = [count * layer.head_dim for count in (layer.heads, layer.kv_heads, layer.kv_heads)]
    parts = torch.split(rows, widths, dim=1)
    for part, weight in zip(parts, (layer.q_norm, layer.k_norm), strict=False):
        if weight is not None:
            by_head = part.view(len(rows), -1, len(weight))
            scale = (by_head.square().mean(2, keepdim=True) + layer.eps).rsqrt()
            by_head *= scale * (weight.to(rows.device, torch.float64) + layer.norm_offset)


def _lengths(rows: Tensor) -> Tensor:
    """Lengths of float64 rows [n, d], float32 [n]."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.float()


def _centred(layer: FirstLayer, rows: Tensor) -> Tensor:
    """Rows [n, d] as the projection needs them: without their means for layernorm."""
    return rows - rows.mean(1, keepdim=True) if layer.norm == "layernorm" else rows


def _blocks(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + BUILD_ROWS, count)) for first in range(0, count, BUILD_ROWS)]
