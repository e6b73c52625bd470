"""The position table of an export, thinned to what a picture can show."""

from dataclasses import dataclass

from torch import Tensor

from exporters.bucket import Place
from exporters.manifest import Manifest
from exporters.safefile import own_file
from exporters.strays import WEIGHTS
from exporters.tablefile import TABLES
from jobs.report.rows import read_rows
from kernels.positions import sinusoidal

MOST = 64  # rows and columns of a picture


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every row_step-th row and column_step-th column of a table."""

    name: str
    values: Tensor  # float32 [rows, columns]
    shape: tuple[int, int]  # of the whole
    row_step: int
    column_step: int


def position_tables(root: Place, manifest: Manifest) -> tuple[list[Table], str | None]:
    """The tables that are added or turn q and k, or none and a sentence that says why.

    Raises:
        ExportError, KeyError, OSError: if they cannot be read.
    """
    layer = manifest.layer
    if layer is None:
        return [], "Only tokens were exported, so there was no layer and no position table."
    kind, length = layer["positions"], int(manifest.windows["context_length"])
    if manifest.job.get("pre_rope"):
        return [], "The export has q and k before they turn (--pre-rope), so it holds no angles."
    if kind == "none":
        return [], "This layer has no positions: nothing is added, and q and k do not turn."
    stored = WEIGHTS if manifest.of_kind("weights") else None
    if kind == "rope":
        names = {"cos": "rotary.cos", "sin": "rotary.sin"}
        if stored is None and manifest.of_kind("tables"):
            stored, names = TABLES, {"cos": "rotary_cos", "sin": "rotary_sin"}
        if stored is not None:
            file = own_file(root, stored)
            return [_stored(file, tensor, name, length) for name, tensor in names.items()], None
    elif stored is not None:
        return [_stored(own_file(root, stored), "position.weight", kind, length)], None
    if kind == "sinusoidal":
        table = sinusoidal(length, int(layer["d_model"]))
        return [_table(kind, table[:: _step(length)], length, _step(length))], None
    return [], (
        f"The positions are {kind}, and the layer was not stored (--no-save-weights), so there is "
        "no table to show."
    )


def _stored(file: Place, tensor: str, name: str, length: int) -> Table:
    """Only the rows that are shown are read."""
    step = _step(length)
    rows = [(row, row + 1) for row in range(0, length, step)]
    return _table(name, read_rows(file, tensor, rows), length, step)


def _table(name: str, rows: Tensor, length: int, step: int) -> Table:
    width = rows.shape[1]
    return Table(
        name=name,
        values=rows[:, :: _step(width)].float(),
        shape=(length, width),
        row_step=step,
        column_step=_step(width),
    )


def _step(size: int) -> int:
    return -(-size // MOST)
