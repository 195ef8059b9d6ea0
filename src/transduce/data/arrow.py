"""Parquet files and other Arrow tables, by way of the package pyarrow (extra ``data``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from transduce.core.errors import DataError

from .readers import Found, Progress
from .rows import MISSING, Rules, cell, no_column, read_row, sides

_BATCH = 4096  # rows that are decoded at a time


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError('Parquet files need the package pyarrow: pip install "transduce[data]".') from None
    return pyarrow


def read_parquet(path: Path, rules: Rules, progress: Progress) -> Iterator[Found]:
    """Rows of a .parquet file; only the wanted columns are read, a few thousand rows at a time."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total = max(1, file.metadata.num_rows)

            def tables(roots: list[str]) -> Iterator[Any]:
                return file.iter_batches(batch_size=_BATCH, columns=roots)

            yield from read_arrow(path, rules, progress, (file.schema_arrow, tables, total))
    except (pyarrow.ArrowException, EOFError):
        raise DataError(f"{path} is not a whole parquet file; write it anew.") from None
    except OSError as problem:
        reason = problem.strerror or "it is not a whole parquet file; write it anew"
        raise DataError(f"{path} cannot be read: {reason}.") from None


def read_arrow(
    path: Path, rules: Rules, progress: Progress, table: tuple[Any, Callable[[list[str]], Iterable[Any]], int]
) -> Iterator[Found]:
    """Rows of a table: its Arrow schema, a function from names of columns to record batches, its length."""
    schema, tables, total = table
    wanted = sides(path, rules, schema.names)
    columns = [column for side in wanted for column in side.columns]
    roots = {column: column if column in schema.names else column.split(".", 1)[0] for column in columns}
    for column in columns:
        _check_type(path, column, schema)
    number = 0
    progress.share = lambda: number / total
    for batch in tables(list(dict.fromkeys(roots.values()))):
        values = {root: _values(batch.column(root)) for root in set(roots.values())}
        for at in range(batch.num_rows):
            number += 1
            row = {root: column[at] for root, column in values.items()}
            raw = ", ".join(f"{root}: {str(value)[:200]!r}" for root, value in row.items())
            yield read_row((path, "row", number), wanted, lambda c: cell(row, c), raw)


def _check_type(path: Path, column: str, schema: Any) -> None:
    """Refuse at once what cannot be text: numbers, sounds, pictures."""
    types = _pyarrow().types
    kind = schema.field(column).type if column in schema.names else _inner(path, column, schema)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (_is_text(kind) or types.is_null(kind)):
        raise DataError(f'{path} cannot be read: its column "{column}" holds {_said(kind)}, not text.')


def _inner(path: Path, column: str, schema: Any) -> Any:
    root, *rest = column.split(".")
    kind = schema.field(root).type
    for name in rest:
        if not _pyarrow().types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise DataError(no_column(path, column, schema.names))
        kind = kind.field(name).type
    return kind


def _is_text(kind: Any) -> bool:
    types = _pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _said(kind: Any) -> str:
    types = _pyarrow().types
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        media = {"bytes", "path"} == set(names)
        return "sounds or pictures" if media else f"named values ({', '.join(names)}; ask for one with a dot)"
    return str(kind)


def _values(column: Any) -> list[Any]:
    """Python values of a column; texts whose bytes are no UTF-8 come with escapes instead of an error."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pyarrow = _pyarrow()
        if not _is_text(column.type):
            return [None if not value.is_valid else _value(value) for value in column]
        binary = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if b is None else b.decode("utf-8", "surrogateescape") for b in binary]


def _value(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return MISSING
