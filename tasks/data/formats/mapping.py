"""The recipe's names of columns, put in place of the source's."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from models.errors import InputError
from tasks.data.readers import Row, shown_names

Mapping = tuple[tuple[str, str], ...]
"""Pairs of a name that the formats know and the source's column; a dot goes into an object."""


def refuse_unknown(mapping: Mapping, rows: Sequence[Row]) -> None:
    """Raise InputError for a mapped column that no row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for target, column in mapping:
        if rows and not any(_is_there(row, column) for row in rows):
            near = get_close_matches(column, names, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"columns found: {shown_names(names) or 'none'}"
            raise InputError(f"columns.{target}: there is no column '{column}'; {remedy}")


def mapped(row: Row, mapping: Mapping) -> Row:
    """The row with mapped columns under their new names; a column that had such a name before is covered by it."""
    if not mapping:
        return row
    taken = {column for _, column in mapping}
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {target: _value(row, column) for target, column in mapping if _is_there(row, column)}


def _is_there(row: Row, column: str) -> bool:
    value: Any = row
    for name in _path(row, column):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _value(row: Row, column: str) -> Any:
    value: Any = row
    for name in _path(row, column):
        value = value[name]
    return value


def _path(row: Row, column: str) -> list[str]:
    return [column] if column in row else column.split(".")
