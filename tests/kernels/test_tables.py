"""A, B and c against float64; how they are combined is tested in test_combine.py."""

from dataclasses import replace

import pytest
import torch

from kernels import reference
from kernels.errors import LayerError
from kernels.layer import FirstLayer, Norm
from kernels.tables import BUILD_ROWS, Tables, build, build_bytes, join, table_bytes
from tests.helpers import random_layer

CPU = torch.device("cpu")
NORMS: list[Norm] = ["none", "layernorm", "rmsnorm"]


def every_id(layer: FirstLayer) -> torch.Tensor:
    return torch.arange(layer.vocabulary_size, dtype=torch.int32)


def tensors_of(tables: Tables) -> list[torch.Tensor]:
    found = [tables.token_ids, tables.token_table, tables.position_table]
    if tables.norm is not None:
        found += vars(tables.norm).values()
    return [value for value in found if isinstance(value, torch.Tensor)]


def nbytes(tables: Tables) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(tables))


def rows_of(table: torch.Tensor) -> torch.Tensor:
    """A table [H + 2 Hk, n, Dh] as rows [n, F]."""
    return table.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "offset100"])
def test_a_b_and_c_are_the_algebra_rounded_once(norm: Norm, offset: float) -> None:
    layer = random_layer(d=100, heads=5, head_dim=7, norm=norm, offset=offset)
    tables = build(layer, every_id(layer), CPU)
    exact = reference.in_float64(layer)
    q, k, v = reference.project(exact, every_id(layer)[:, None].expand(-1, 1))
    finished = torch.cat([q, k, v], 1).flatten(1)  # of position 0
    assert tables.position_table is not None
    out = rows_of(tables.token_table).double() + rows_of(tables.position_table)[0].double()
    if tables.norm is not None:
        x = reference.embed(exact, every_id(layer)[:, None])[:, 0]
        assert torch.equal(tables.norm.token_features, layer.embedding)
        if norm == "layernorm":
            x = x - x.mean(1, keepdim=True)
        length = x.square().mean(1, keepdim=True)
        out = out * (length + layer.eps).rsqrt() + tables.norm.constant.double()
    scale = float(finished.abs().max())
    assert float((out - finished).abs().max()) < 3 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("norm", NORMS)
def test_without_positions_rows_are_finished(norm: Norm) -> None:
    layer = replace(random_layer(norm=norm, positions=False), embedding_scale=2.5)
    tables = build(layer, every_id(layer), CPU)
    assert tables.position_table is None
    assert tables.norm is None
    exact = reference.project(reference.in_float64(layer), every_id(layer)[:, None])
    expected = torch.cat(exact, 1).flatten(1).float()
    assert float((expected - rows_of(tables.token_table)).abs().max()) <= 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_hangs_on_its_token_alone(norm: Norm) -> None:
    layer = random_layer(vocabulary_size=1300, norm=norm, d=48, head_dim=11)
    whole = build(layer, every_id(layer), CPU)
    for ids in (every_id(layer)[700:701], every_id(layer)[3::7]):
        part = build(layer, ids, CPU)
        assert torch.equal(whole.token_table[:, ids.long()], part.token_table)
    longer = random_layer(context_length=2 * BUILD_ROWS + 5, norm=norm)
    once = build(longer, every_id(longer)[:3], CPU)
    assert once.position_table is not None
    assert bool(torch.isfinite(once.position_table).all())


@pytest.mark.parametrize("rows", [1, 700, BUILD_ROWS])
def test_every_product_has_as_many_rows_and_one_thread(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products of float64 that threads share differ, in one of millions of values, from d=4096 on.
    layer = random_layer(vocabulary_size=1300, context_length=BUILD_ROWS + 5)
    multiply, found = torch.mm, []

    def spy(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        found.append((len(left), torch.get_num_threads()))
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", spy)
    build(layer, every_id(layer)[:rows], CPU)
    assert found == [(BUILD_ROWS, 1)] * (2 + -(-rows // BUILD_ROWS))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no-positions"])
def test_their_size_is_known_before(norm: Norm, positions: bool) -> None:
    layer = random_layer(norm=norm, positions=positions, kv_heads=2)
    tables = build(layer, every_id(layer)[:9], CPU)
    expected = table_bytes(
        tokens=9, positions=16 if positions else 0, d_model=64, total_width=8 * 16, norm=norm
    )
    assert expected == nbytes(tables)


def test_what_building_takes_is_known_before() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found += [build_bytes(rows=rows, d_model=64, total_width=192) for rows in (9, 1000)]
    finally:
        torch.set_num_threads(before)
    weight, block = 8 * 64 * 192, 8 * BUILD_ROWS * (3 * 64 + 192)
    assert found == [weight + block * threads for threads in (1, 1, 1, 2)]


@pytest.mark.parametrize("norm", NORMS)
def test_bits_do_not_hang_on_threads(norm: Norm) -> None:
    layer = random_layer(d=770, heads=2, head_dim=64, context_length=1500, norm=norm)
    before = torch.get_num_threads()
    built = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            built.append(build(layer, every_id(layer), CPU))
    finally:
        torch.set_num_threads(before)
    for other in built[1:]:
        for one, two in zip(tensors_of(built[0]), tensors_of(other), strict=True):
            assert torch.equal(one, two)


def test_progress_counts_every_row() -> None:
    layer = random_layer(vocabulary_size=1300)
    done: list[int] = []
    build(layer, every_id(layer), CPU, done.append)
    assert sum(done) == 1300 + 16


def test_a_token_without_a_row_is_an_error() -> None:
    layer = random_layer()
    tables = build(layer, torch.tensor([3, 7, 9], dtype=torch.int32), CPU)
    ids = torch.tensor([[7, 3], [9, 9]], dtype=torch.int32)
    assert tables.rows(ids).tolist() == [[1, 0], [2, 2]]
    for wrong in (4, 10, -1, 2**30):
        with pytest.raises(LayerError, match=f"no row for token {wrong}$"):
            tables.rows(torch.tensor([[3, wrong]], dtype=torch.int32))


def test_a_layer_too_narrow_to_be_exact_is_refused() -> None:
    with pytest.raises(LayerError, match="d-model is 7; give --method direct"):
        build(random_layer(d=7, head_dim=3), torch.zeros(1, dtype=torch.int32), CPU)


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_tables_that_were_built_in_stretches_have_the_same_bits(norm: Norm) -> None:
    layer = random_layer(norm=norm, vocabulary_size=3 * BUILD_ROWS)
    ids = torch.arange(0, 3 * BUILD_ROWS - 5, dtype=torch.int32)
    whole = build(layer, ids, torch.device("cpu"))
    stretches = ids[: 2 * BUILD_ROWS], ids[2 * BUILD_ROWS :]
    parts = [build(layer, part, torch.device("cpu")) for part in stretches]
    joined = join(parts, ids)
    assert torch.equal(joined.token_table, whole.token_table)
    assert torch.equal(joined.rows(ids), whole.rows(ids))
    for name in ("token_features", "token_means", "token_lengths"):
        found, expected = (getattr(tables.norm, name, None) for tables in (joined, whole))
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert torch.equal(found, expected)
