"""Rows of CSV files: texts as they are, and lists of messages as JSON in a cell."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from models.errors import InputError
from tasks.data.lines import Entry, Row, shown_names, text_lines

_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
"""How a cell begins that holds a list of messages."""


def csv_entries(stream: BinaryIO, file: Path) -> Iterator[Entry]:
    """Each row of a CSV file; the first line names the columns.

    Raises:
        InputError: the rest of the file cannot be read.
    """
    csv.field_size_limit(sys.maxsize)  # the default refuses texts above 131,072 characters
    reader = csv.reader(text_lines(stream, file), strict=True)
    try:
        header = next(reader, [])
        _refuse_repeated(header, file)
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            yield f"{file}: row {number}", _csv_row(header, cells, reader.line_num)
    except csv.Error as error:
        remedy = 'put a text with commas, quotes or line breaks in "…", and double the quotes inside it'
        raise InputError(f"{file}: line {reader.line_num}: invalid CSV ({error}); {remedy}") from None


def _refuse_repeated(header: list[str], file: Path) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{file}: line 1: the header names column '{name}' twice; rename or remove one of them")


def _csv_row(header: list[str], cells: list[str], line: int) -> Row | InputError:
    if len(cells) != len(header):
        seen = f"{len(cells)} cells up to line {line}"
        rule = f"the header names {len(header)} columns ({shown_names(header)})"
        return InputError(f'{seen}; {rule}; put a text with commas in "…", or add the missing cells')
    row: Row = {}
    for column, cell in zip(header, cells, strict=True):
        value = _csv_value(cell, column)
        if isinstance(value, InputError):
            return value
        row[column] = value
    return row


def _csv_value(cell: str, column: str) -> str | list[object] | InputError:
    """The cell's text, except for a list of messages, which CSV can only hold as JSON in a cell."""
    if not _MESSAGES.match(cell):
        return cell
    try:
        return cast(list[object], json.loads(cell))
    except (ValueError, RecursionError):
        seen = f"column '{column}': a list of messages that is not JSON"
        return InputError(f"{seen}; a cell with messages holds JSON; write it with json.dumps, not str, or use JSONL")
