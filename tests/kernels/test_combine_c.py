import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import combine_c, combine_torch, native
from kernels.layer import DTYPES
from kernels.rotary import Rotary, rotary_of
from kernels.tables import NormTables, Tables
from tests.helpers import needs_c

pytestmark = needs_c


def random_tables(
    *,
    heads: int = 3,
    rows: int = 50,
    width: int = 16,
    positions: int = 40,
    kind: str = "added",
    turned: int = 8,
    seed: int = 0,
) -> Tables:
    """Tables of `heads` q, k and v heads each, of normal numbers; kind names what is combined."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    norm = rotary = None
    if kind == "rescaled":
        norm = NormTables(
            token_features=normal(rows, 8), position_features=normal(positions, 8),
            token_means=None, position_means=None, token_lengths=normal(rows),
            position_lengths=normal(positions), weight=normal(3 * heads * width, 8),
            constant=normal(3 * heads * width), eps=1e-5,
        )  # fmt: skip
    if kind in ("turned", "interleaved"):
        rotary = rotary_of(normal(turned // 2), positions, interleaved=kind == "interleaved")
    return Tables(
        token_ids=torch.arange(rows, dtype=torch.int32),
        token_table=normal(3 * heads, rows, width),
        position_table=normal(3 * heads, positions, width) if kind in ADDED else None,
        norm=norm,
        rotary=rotary,
        heads=heads,
        kv_heads=heads,
        head_dim=width,
    )


ADDED = ("added", "rescaled")
KINDS = [*ADDED, "turned", "interleaved", "gathered"]


def both(
    tables: Tables, rows: Tensor, dtype: torch.dtype, heads: slice, layout: str = "bhtd"
) -> tuple[Tensor, Tensor]:
    """What combine.c writes and what torch writes for some heads, into NaN."""
    count, width = heads.stop - heads.start, tables.head_dim
    shape = (rows.shape[0], count, rows.shape[1], width)
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(rows.shape, generator=generator) if tables.norm is not None else None
    found = []
    for by_c in (True, False):
        if layout == "bthd":
            target = torch.full((shape[0], shape[2], count, width), torch.nan, dtype=dtype)
            target = target.transpose(1, 2)
        else:
            target = torch.full(shape, torch.nan, dtype=dtype)
        if by_c:
            run, _ = combine_c.function(width, dtype)
            assert run is not None
            combine_c.combine_heads(run, tables, heads, rows, scale, tables.rotary, target)
        else:
            combine_torch.combine_heads(tables, heads, rows, scale, tables.rotary, target)
        assert not bool(torch.isnan(target).any())
        found.append(target.contiguous().view(torch.int16))
    return found[0], found[1]


def random_rows(windows: int, length: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(count, (windows, length), generator=generator, dtype=torch.int32)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(list(DTYPES)),
    width=st.sampled_from([1, 2, 5, 16, 31, 48, 64, 80]),
    turned=st.floats(0, 1),
    windows=st.integers(1, 5),
    length=st.integers(1, 40),
    heads=st.integers(1, 4),
    layout=st.sampled_from(["bhtd", "bthd"]),
    stream=st.booleans(),
    part_bytes=st.sampled_from([1, 999, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_the_bits_are_those_of_torch(
    kind: str, dtype: str, width: int, turned: float, windows: int, length: int, heads: int,
    layout: str, stream: bool, part_bytes: int, seed: int,
) -> None:  # fmt: skip
    tables = random_tables(
        heads=heads, width=width, kind=kind, turned=2 * int(turned * width / 2), seed=seed
    )
    rows = random_rows(windows, length, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine_c, "STREAM_BYTES", 0 if stream else 1 << 40)
        patch.setattr(combine_c, "PART_BYTES", part_bytes)
        ours, torchs = both(tables, rows, DTYPES[dtype], slice(heads, 2 * heads), layout)
    assert torch.equal(ours, torchs)


@pytest.mark.parametrize("openmp", [True, False], ids=["torchs-threads", "own-threads"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_threads_share_the_work(
    dtype: str, openmp: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if openmp:
        assert hasattr(ctypes.CDLL(None), "GOMP_parallel")
    else:
        monkeypatch.setattr(native, "OPENMP", "no_such_function")
    monkeypatch.setattr(combine_c, "PART_BYTES", 4096)
    ours, torchs = both(
        random_tables(width=64), random_rows(30, 40, 50), DTYPES[dtype], slice(0, 9)
    )
    assert torch.equal(ours, torchs)


def rounded(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 values [n] as combine.c and as torch round them, as int16."""
    tables = random_tables(heads=1, rows=1, width=len(values), kind="gathered")
    tables.token_table[0, 0] = values
    run, _ = combine_c.function(len(values), dtype)
    assert run is not None
    target = torch.empty(1, 1, 1, len(values), dtype=dtype)
    rows = torch.zeros(1, 1, dtype=torch.int32)
    combine_c.combine_heads(run, tables, slice(0, 1), rows, None, None, target)
    return target.view(torch.int16).flatten(), values.to(dtype).view(torch.int16)


def around_every_number(dtype: torch.dtype) -> Tensor:
    """Every finite number of a 16-bit dtype, the middles between them, and their neighbours."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middles = ((numbers[1:].double() + numbers[:-1].double()) / 2).float()
    exact = torch.cat([numbers, middles, torch.tensor([65519.99, 65520.0, 3.3e38, torch.inf])])
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    return torch.cat([exact, -exact, exact.nextafter(up), exact.nextafter(down)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_is_rounded_as_torch_rounds_it(dtype: torch.dtype) -> None:
    ours, torchs = rounded(around_every_number(dtype), dtype)
    assert torch.equal(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    kinds = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF]  # signs, quiet and signalling
    values = torch.tensor(kinds, dtype=torch.int32).view(torch.float32)
    assert bool(values.isnan().all())
    ours, _ = rounded(values, dtype)
    assert bool(ours.view(dtype).isnan().all())


def test_a_row_longer_than_what_is_streamed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine_c, "STREAM_BYTES", 0)
    tables = random_tables(heads=1, width=4096, rows=5)
    ours, torchs = both(tables, random_rows(2, 9, 5), torch.float32, slice(0, 3))
    assert torch.equal(ours, torchs)


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    ("width", "heads", "offset", "gap"),
    [
        pytest.param(64, 2, 1, 0, id="offset1"),
        pytest.param(64, 2, 8, 0, id="offset8"),
        pytest.param(64, 2, 0, 4, id="gap4"),
        pytest.param(64, 2, 0, 8, id="gap8"),
        pytest.param(8, 16, 0, 0, id="heads-of-8"),
        pytest.param(20, 16, 0, 0, id="heads-of-20"),
        pytest.param(64, 2, 0, 0, id="aligned"),
    ],
)
def test_what_cannot_be_streamed_in_whole_lines_is_stored(
    width: int, heads: int, offset: int, gap: int, dtype: str, layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(combine_c, "STREAM_BYTES", 0)
    tables = random_tables(heads=heads, width=width)
    rows = random_rows(3, 40, 50)
    _, expected = both(tables, rows, DTYPES[dtype], slice(0, heads))
    shape = (3, 40, heads) if layout == "bthd" else (3, heads, 40)
    storage = torch.full((3 * heads * 40 * (width + gap) + 2 * 64,), torch.nan, dtype=DTYPES[dtype])
    first = -storage.data_ptr() // storage.itemsize % 64 + offset
    used = storage[first : first + 3 * heads * 40 * (width + gap)].view(*shape, width + gap)
    target = used[..., :width]
    if layout == "bthd":
        target = target.transpose(1, 2)
    run, _ = combine_c.function(width, DTYPES[dtype])
    assert run is not None
    combine_c.combine_heads(run, tables, slice(0, heads), rows, None, None, target)
    assert torch.equal(target.contiguous().view(torch.int16), expected)
    assert int(storage.isnan().sum()) == storage.numel() - target.numel()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tables: tables.token_table.transpose_(1, 2), id="token_table"),
        pytest.param(lambda tables: tables.position_table.transpose_(1, 2), id="position_table"),
    ],
)
def test_tables_that_c_could_not_read_are_refused(change: Any) -> None:
    tables = random_tables(rows=16, width=16, positions=16)
    change(tables)
    with pytest.raises(ValueError, match="cannot be read from C"):
        both(tables, random_rows(2, 9, 16), torch.float32, slice(0, 3))


def test_a_table_that_begins_within_a_number_is_refused() -> None:
    tables = random_tables(heads=1)
    odd = torch.zeros(4 * tables.token_table.numel() + 1, dtype=torch.uint8)[1:]
    values = torch.frombuffer(odd.numpy(), dtype=torch.float32).view(tables.token_table.shape)
    with pytest.raises(ValueError, match="cannot be read from C"):
        both(replace(tables, token_table=values), random_rows(2, 9, 50), torch.float32, slice(0, 1))


def test_rotary_angles_need_not_be_of_all_values() -> None:
    tables = random_tables(kind="turned", width=48, turned=10)
    assert isinstance(tables.rotary, Rotary)
    ours, torchs = both(tables, random_rows(3, 40, 50), torch.float32, slice(0, 3))
    assert torch.equal(ours, torchs)
