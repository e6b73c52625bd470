"""Parquet: the column of a name, a document each row, one row group after another."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from jobs.errors import CorpusError
from jobs.inputs.lines import too_long
from jobs.inputs.segments import BLOCK, BadRecord, ReadSettings, Texts
from jobs.inputs.texts import NOT_UTF8, Packer, utf8

ROWS = 256  # decoded at once


def parquet_texts(
    location: str, file: BinaryIO, settings: ReadSettings, block: int = BLOCK
) -> Iterator[Texts]:
    """The texts of a Parquet file; only the pages of the text column are read.

    Raises:
        CorpusError: if pyarrow is not installed, the file is damaged, or it has no such column of
            strings.
    """
    arrow, parquet = _pyarrow(location)
    packed = Packer(block)
    row = 0
    try:
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        path = _path(location, table.schema_arrow, settings.text_field)
        for batch in table.iter_batches(ROWS, columns=[settings.text_field], use_threads=False):
            for value in _values(batch, path):
                row += 1
                if value is None:
                    packed.bad.append(BadRecord(f"row {row}", "has no text: it is null"))
                elif len(value) > settings.max_record_bytes:
                    reason = too_long(row, settings.max_record_bytes).reason
                    packed.bad.append(BadRecord(f"row {row}", reason))
                else:
                    try:
                        text, replaced = utf8(value, settings.text_errors)
                        packed.replaced += replaced
                        packed.add(text, f"row {row}")
                    except UnicodeDecodeError:
                        packed.bad.append(BadRecord(f"row {row}", NOT_UTF8))
                if packed.full():
                    yield packed.take()
    # Damage to names makes them no UTF-8, and damage to lengths beyond any memory.
    except (arrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{location} could not be read as Parquet after row {row}: {reason}"
        ) from error
    if packed.parts or packed.bad:
        yield packed.take()


def parquet_rows(location: str, file: BinaryIO) -> int:
    """How many rows a Parquet file says that it has.

    Raises:
        CorpusError: if pyarrow is not installed, or the file is damaged.
    """
    arrow, parquet = _pyarrow(location)
    try:
        return int(parquet.ParquetFile(file, pre_buffer=False).metadata.num_rows)
    except (arrow.ArrowException, OSError) as error:
        raise CorpusError(f"{location} could not be read as Parquet: {error}") from error


def _pyarrow(location: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        CorpusError: if they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(
            f"{location} needs pyarrow to be read; install it with pip install 'qkvmill[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def _path(location: str, schema: Any, name: str) -> list[str]:
    """The names that lead to a column: its own, or those of structs and of what lies in them."""
    import pyarrow as arrow

    path = [name] if name in schema.names else name.split(".")
    kind: Any = arrow.struct(schema)
    for depth, step in enumerate(path):
        fields = list(kind) if arrow.types.is_struct(kind) else []
        kinds = [field.type for field in fields if field.name == step]
        column = ".".join(path[: depth + 1])
        if not kinds:
            known = ", ".join(field.name for field in fields) or f"{kind} there"
            raise CorpusError(
                f"{location} has no column {column!r}, but {known}; name another as --text-field"
            )
        if len(kinds) > 1:
            raise CorpusError(
                f"{location} has {len(kinds)} columns {column!r}; give each a name of its own"
            )
        kind = kinds[0]
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view)
    binary = (arrow.types.is_binary, arrow.types.is_large_binary, arrow.types.is_binary_view)
    if not any(is_kind(kind) for is_kind in (*strings, *binary)):
        raise CorpusError(
            f"{location}: the column {'.'.join(path)!r} holds {kind}, not strings; "
            "name another as --text-field"
        )
    return path


def _values(batch: Any, path: list[str]) -> Iterator[bytes | None]:
    """The values of a column as bytes; None where it, or what it lies in, is null."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    column = batch.column(path[0])  # others may begin with the same name
    for name in path[1:]:
        column = compute.struct_field(column, name)  # null where the struct is
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    yield from column.cast(arrow.large_binary()).to_pylist()
