from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.errors import ExportError
from exporters.tablefile import load_tables, save_tables, table_tensors
from kernels import combine
from kernels.layer import Norm
from kernels.tables import build
from tests.helpers import nan_outputs, random_ids, random_layer


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no-positions"])
def test_tables_come_back_to_the_last_bit(tmp_path: Path, norm: Norm, positions: bool) -> None:
    layer = random_layer(norm=norm, positions=positions, kv_heads=2)
    ids = random_ids(3, 16)
    tables = build(layer, torch.unique(ids).to(torch.int32), torch.device("cpu"))
    save_tables(tmp_path, "t.safetensors", tables)
    again = load_tables(tmp_path / "t.safetensors")
    stored = load_file(tmp_path / "t.safetensors")
    assert stored.keys() == table_tensors(tables).keys() == table_tensors(again).keys()
    outputs = [nan_outputs(layer, 3, 16) for _ in range(2)]
    for each, out in zip((tables, again), outputs, strict=True):
        combine.combine(each, each.rows(ids), *out)
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def test_they_are_mapped_and_not_read(tmp_path: Path) -> None:
    layer = random_layer(vocabulary_size=200_000, d=8, heads=1, head_dim=8)
    ids = torch.arange(200_000, dtype=torch.int32)
    save_tables(tmp_path, "t.safetensors", build(layer, ids, torch.device("cpu")))
    before = resident()
    tables = load_tables(tmp_path / "t.safetensors")
    grown = resident() - before
    assert grown < tables.token_table.nbytes / 4


def test_tables_that_begin_within_a_number_are_moved(tmp_path: Path) -> None:
    # The format lets a header have any length, though the library pads its own.
    layer = random_layer(norm="layernorm")
    ids = random_ids(3, 16)
    save_tables(
        tmp_path, "t.safetensors", build(layer, torch.unique(ids).int(), torch.device("cpu"))
    )
    data = (tmp_path / "t.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size] + b" "
    (tmp_path / "odd.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + data[8 + size :]
    )
    outputs = [nan_outputs(layer, 3, 16) for _ in range(2)]
    for name, out in zip(("t", "odd"), outputs, strict=True):
        tables = load_tables(tmp_path / f"{name}.safetensors")
        combine.combine(tables, tables.rows(ids), *out)
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def resident() -> int:
    """Bytes of this process that are private memory, files that are mapped not among them."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return 1024 * int(line.split()[1])


def test_a_norm_without_positions_is_refused(tmp_path: Path) -> None:
    layer = random_layer(norm="layernorm")
    tables = build(layer, torch.arange(9, dtype=torch.int32), torch.device("cpu"))
    save_tables(tmp_path, "t.safetensors", replace(tables, position_table=None))
    with pytest.raises(ExportError, match="no added positions"):
        load_tables(tmp_path / "t.safetensors")


def spoil(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = {
        "token_ids": torch.tensor([3, 5], dtype=torch.int32),
        "token_table": torch.ones(3, 2, 2),
    }
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("name", "tensor", "metadata"),
    [
        ("token_ids", None, '{"heads": 1, "kv_heads": 1}'),
        ("token_ids", torch.tensor([5, 3], dtype=torch.int32), '{"heads": 1, "kv_heads": 1}'),
        ("token_ids", torch.tensor([-1, 3], dtype=torch.int32), '{"heads": 1, "kv_heads": 1}'),
        ("token_ids", torch.tensor([1], dtype=torch.int32), '{"heads": 1, "kv_heads": 1}'),
        ("token_table", torch.ones(2, 6), '{"heads": 1, "kv_heads": 1}'),
        ("token_table", torch.ones(4, 2, 2), '{"heads": 1, "kv_heads": 1}'),
        ("token_table", torch.ones(3, 2, 2), '{"heads": 1}'),
        ("token_table", torch.ones(3, 2, 2), "not JSON"),
        ("position_table", torch.ones(3, 4, 1), '{"heads": 1, "kv_heads": 1}'),
        ("constant", torch.ones(6), '{"heads": 1, "kv_heads": 1}'),
    ],
    ids=[
        "no-ids",
        "unordered",
        "negative",
        "short",
        "flat",
        "other-heads",
        "no-heads",
        "not-json",
        "narrow-positions",
        "no-norm",
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, metadata: str
) -> None:
    path = tmp_path / "t.safetensors"
    save_file(spoil(name, tensor), path, metadata={"qkvmill": metadata})
    with pytest.raises(ExportError, match=r"t\.safetensors does not hold tables"):
        load_tables(path)


def test_a_file_that_is_not_there_or_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="could not be read"):
        load_tables(tmp_path / "none.safetensors")
    path = tmp_path / "t.safetensors"
    save_file(spoil("x", torch.ones(1)), path, metadata={"qkvmill": "{}"})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match="damaged"):
        load_tables(path)
