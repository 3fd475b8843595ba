"""One reader per file format: JSONL, JSON, CSV and Parquet, gzip or not.

A reader yields each row with its place. A row that cannot be read comes as an error, so that the rows after it are
still looked at; where the rest of a file cannot be read, the error is raised.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from models.errors import InputError

Row = dict[str, Any]
"""A value per column."""
Entry = tuple[str, Row | InputError]
"""A place and the row there, or what is wrong with it; the error's message lacks the place."""

FORMATS = "JSONL (.jsonl, .ndjson), JSON (.json), CSV (.csv) or Parquet (.parquet), each also with .gz"
CSV_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
"""How a cell begins that holds a list of messages."""
PARQUET_BATCH_ROWS = 1024
LISTED_NAMES = 5


def file_format(path: Path) -> str | None:
    """The ending that names the file's format, such as `.jsonl`, or None where it is unknown."""
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    return ending if ending in _READERS else None


def file_entries(file: Path) -> Iterator[Entry]:
    """Each row of one file of a known format.

    Raises:
        InputError: the file is empty, damaged, or cannot be read to its end.
    """
    count = 0
    try:
        with _opened(file) as stream:
            for entry in _READERS[str(file_format(file))](stream, file):
                count += 1
                yield entry
    except (OSError, EOFError, zlib.error) as error:
        remedy = "check that it is whole and may be read, or fetch it again"
        raise InputError(f"{file}: cannot be read ({error}); {remedy}") from error
    if not count:
        raise InputError(f"{file}: the file holds no rows ({file.stat().st_size} bytes); add rows or leave it out")


def shown_names(names: list[str]) -> str:
    """The first of `names` and the number of others, as an error quotes them."""
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(repr(name) for name in names[:LISTED_NAMES]) + more


def _opened(file: Path) -> BinaryIO:
    """The file, unpacked where it begins like gzip: browsers unpack a download and keep its name."""
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(file)) if packed else file.open("rb")


def _lines(stream: BinaryIO, file: Path) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        yield _decoded(line, file, number)


def _decoded(data: bytes, file: Path, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        seen = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        line = first_line + error.object.count(b"\n", 0, error.start)
        remedy = f"save the file as UTF-8 (iconv -f ENCODING -t utf-8 {file.name})"
        raise InputError(f"{file}: line {line}: {seen}; {remedy}") from None


def _jsonl_entries(stream: BinaryIO, file: Path) -> Iterator[Entry]:
    return _line_entries(_lines(stream, file), file)


def _line_entries(lines: Iterator[str], file: Path) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{file}: line {number}", _parsed_line(line)


def _parsed_line(line: str) -> Row | InputError:
    remedy = "a line holds one JSON object, correct it or remove the line"
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError as error:
        return InputError(f"invalid JSON at column {error.colno} ({error.msg}); {remedy}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return InputError(f"unreadable JSON ({str(error).split(';')[0]}); {remedy}")


def _object(value: object) -> Row | InputError:
    if isinstance(value, dict):
        return value
    rule = "a row is a JSON object with a value per column"
    return InputError(f"the row is {_json_type(value)}; {rule}; write it as one")


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _json_entries(stream: BinaryIO, file: Path) -> Iterator[Entry]:
    """Rows of a JSON array. Many `.json` files hold one object per line instead: those are read as JSONL."""
    content = _decoded(stream.read(), file)
    first_line = content.lstrip().partition("\n")[0]
    if first_line.startswith("{") and isinstance(_parsed_line(first_line), dict):
        yield from _line_entries(iter(content.split("\n")), file)
        return
    for number, value in enumerate(_parsed_array(content, file) if content.strip() else [], 1):
        yield f"{file}: row {number}", _object(value)


def _parsed_array(content: str, file: Path) -> list[object]:
    remedy = "a JSON file holds an array of objects, correct it"
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{file}: {place}: invalid JSON ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: unreadable JSON ({str(error).split(';')[0]}); {remedy}") from None
    if isinstance(value, list):
        return value
    seen = f"one object with the keys {shown_names(list(value))}" if isinstance(value, dict) else _json_type(value)
    raise InputError(f"{file}: the file is {seen}; {remedy}")


def _csv_entries(stream: BinaryIO, file: Path) -> Iterator[Entry]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts above 131,072 characters
    reader = csv.reader(_lines(stream, file), strict=True)
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
    if not CSV_MESSAGES.match(cell):
        return cell
    try:
        return cast(list[object], json.loads(cell))
    except (ValueError, RecursionError):
        seen = f"column '{column}': a list of messages that is not JSON"
        return InputError(f"{seen}; a cell with messages holds JSON; write it with json.dumps, not str, or use JSONL")


def _parquet_entries(stream: BinaryIO, file: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    if not stream.read(1):
        return
    stream.seek(0)
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(stream.read()) if isinstance(stream, gzip.GzipFile) else stream)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        cause = str(error).splitlines()[0]
        raise InputError(f"{file}: row {number + 1}: unreadable Parquet ({cause}); write or fetch it again") from error


_READERS: dict[str, Callable[[BinaryIO, Path], Iterator[Entry]]] = {
    ".jsonl": _jsonl_entries,
    ".ndjson": _jsonl_entries,
    ".json": _json_entries,
    ".csv": _csv_entries,
    ".parquet": _parquet_entries,
}
