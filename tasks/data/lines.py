"""Lines of text and JSON as rows, and how errors quote what they show instead."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from models.errors import InputError

Row = dict[str, Any]
"""A value per column."""
Entry = tuple[str, Row | InputError]
"""A place and the row there, or what is wrong with it; the error's message lacks the place."""
_LISTED_NAMES = 5


def shown_names(names: list[str]) -> str:
    """The first of `names` and the number of others, as an error quotes them."""
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(repr(name) for name in names[:_LISTED_NAMES]) + more


def text_lines(stream: Iterable[bytes], file: Path, first: int = 1) -> Iterator[str]:
    """The lines of a stream as text; the first of them is line `first` of the file.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, first):
        yield decoded(line, file, number)


def decoded(data: bytes, file: Path, first_line: int = 1) -> str:
    """Text of the file, which begins with that line; a byte order mark is left out.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        seen = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        line = first_line + error.object.count(b"\n", 0, error.start)
        remedy = f"save the file as UTF-8 (iconv -f ENCODING -t utf-8 {file.name})"
        raise InputError(f"{file}: line {line}: {seen}; {remedy}") from None


def line_entries(data: bytes, file: Path, first: int) -> Iterator[Entry]:
    """The row of each line of a part of a JSONL file that begins with line `first`; empty lines are passed over.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, line in enumerate(text_lines(io.BytesIO(data), file, first), first):
        if line.strip():
            yield f"{file}: line {number}", parsed_line(line)


def parsed_line(line: str) -> Row | InputError:
    """The JSON object of a line, or what is wrong with it."""
    remedy = "a line holds one JSON object, correct it or remove the line"
    try:
        return as_object(json.loads(line, object_pairs_hook=unrepeated))
    except json.JSONDecodeError as error:
        return InputError(f"invalid JSON at column {error.colno} ({error.msg}); {remedy}")
    except (ValueError, RecursionError) as error:  # a key twice, a number of thousands of digits, thousands of brackets
        return InputError(f"unreadable JSON ({str(error).split(';')[0]}); {remedy}")


def unrepeated(members: list[tuple[str, Any]]) -> Row:
    """A JSON object of its members.

    Raises:
        ValueError: two of them have the same key, of which one would be lost.
    """
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        raise ValueError(f"the key {next(repr(name) for name in found if names.count(name) > 1)} is there twice")
    return found


def as_object(value: object) -> Row | InputError:
    """A JSON value as a row, or what is wrong with it."""
    if isinstance(value, dict):
        return value
    rule = "a row is a JSON object with a value per column"
    return InputError(f"the row is {json_type(value)}; {rule}; write it as one")


def json_type(value: object) -> str:
    """What JSON calls the value."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
