"""Files as blocks of rows: JSONL, JSON, CSV, Parquet and Arrow, packed or not.

A block is what one process reads on its own. Plain JSONL is cut at line ends and Parquet at row groups, and their
blocks only say where; what can be read from its start alone is read here, and its blocks carry what was read. A row
that cannot be read comes as an error, so that the rows after it are still looked at; where the rest of a file cannot be
read, the error is raised.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from models.errors import InputError
from tasks.data.columnar import batches, group_rows, group_spans, stream_rows
from tasks.data.csv_rows import csv_entries
from tasks.data.json_arrays import array_members
from tasks.data.lines import Entry, Row, as_object, line_entries, parsed_line, shown_names, text_lines
from tasks.data.packing import is_packed, opened, without_packing

__all__ = [
    "BLOCK_BYTES", "FORMATS", "Block", "Entry", "Row", "file_blocks", "file_format", "no_rows", "read_block",
    "shown_names",
]  # fmt: skip

FORMATS = (
    "JSONL (.jsonl, .ndjson), JSON (.json), CSV (.csv), Parquet (.parquet) or Arrow (.arrow, .feather), each also with "
    ".gz or .zst"
)
BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """Rows of one file that are read together."""

    file: Path
    """The file."""
    form: Literal["lines", "groups", "batch", "rows"]
    """`lines` of JSON, `groups` of a Parquet file, a `batch` as an Arrow stream, or `rows` as they were read."""
    first: int = 1
    """Number of its first line or row in the file, from 1."""
    span: tuple[int, int] = (0, 0)
    """Bytes of the file, or numbers of its row groups; end excluded."""
    data: bytes = b""
    """The content, where it was read already."""
    rows: tuple[Entry, ...] = ()
    """The rows, where they were read already."""
    name: str = ""
    """What places call the file; default: its path."""


def file_format(path: Path) -> str | None:
    """The ending that names the file's format, such as `.jsonl`, or None where it is unknown."""
    ending = Path(without_packing(path.name)).suffix
    return ending if ending in _BLOCKS else None


def no_rows(file: Path) -> InputError:
    """What to say of a file without rows."""
    return InputError(f"{file}: the file holds no rows ({file.stat().st_size} bytes); add rows or leave it out")


def file_blocks(file: Path) -> Iterator[Block]:
    """The blocks of one file of a known format, in order.

    Raises:
        InputError: the file is damaged, or cannot be read to its end.
    """
    with _explaining(file):
        yield from _BLOCKS[str(file_format(file))](file)


def read_block(block: Block) -> Iterator[Entry]:
    """Each row of a block, with its place.

    Raises:
        InputError: the rest of it cannot be read.
    """
    entries = _read(block)
    if block.name:
        entries = ((place.replace(str(block.file), block.name, 1), row) for place, row in entries)
    with _explaining(block.file):
        yield from entries


def _read(block: Block) -> Iterator[Entry]:
    if block.form == "rows":
        yield from block.rows
    elif block.form == "lines":
        yield from line_entries(block.data or _bytes(block), block.file, block.first)
    else:
        start, stop = block.span
        batch = block.form == "batch"
        rows = (
            stream_rows(block.data, block.file, block.first)
            if batch
            else group_rows(block.file, start, stop, block.first)
        )
        for number, row in enumerate(rows, block.first):
            yield f"{block.file}: row {number}", row


def _bytes(block: Block) -> bytes:
    with block.file.open("rb") as stream:
        stream.seek(block.span[0])
        return stream.read(block.span[1] - block.span[0])


@contextmanager
def _explaining(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        remedy = "check that it is whole and may be read, or fetch it again"
        raise InputError(f"{file}: cannot be read ({error}); {remedy}") from error


def _line_blocks(file: Path) -> Iterator[Block]:
    """Parts of about `BLOCK_BYTES` that end with a line; of packed files with their content."""
    packed, start, first = is_packed(file), 0, 1
    with opened(file) as stream:
        while data := stream.read(BLOCK_BYTES) + stream.readline():
            block = Block(file, "lines", first, span=(start, start + len(data)))
            yield replace(block, data=data) if packed else block
            start += len(data)
            first += data.count(b"\n")


def _json_blocks(file: Path) -> Iterator[Block]:
    """Rows of a JSON array. Many `.json` files hold one object per line instead: those are read as JSONL."""
    if _holds_lines(file):
        yield from _line_blocks(file)
        return
    with opened(file) as stream:
        members = enumerate(array_members(stream, file), 1)
        yield from _row_blocks(file, ((f"{file}: row {number}", as_object(value)) for number, value in members))


def _holds_lines(file: Path) -> bool:
    with opened(file) as stream:
        start = stream.read(1 << 16)
    if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    with opened(file) as stream:
        line = next(line for line in text_lines(stream, file) if line.strip())
    return isinstance(parsed_line(line), dict)


def _csv_blocks(file: Path) -> Iterator[Block]:
    with opened(file) as stream:
        yield from _row_blocks(file, csv_entries(stream, file))


def _row_blocks(file: Path, entries: Iterable[Entry]) -> Iterator[Block]:
    """Rows as they were read; those before what cannot be read are handed out before the error is raised."""
    source, failure = iter(entries), None
    while failure is None:
        rows: list[Entry] = []
        try:
            rows.extend(islice(source, _BLOCK_ROWS))
        except InputError as error:
            failure = error
        if rows:
            yield Block(file, "rows", rows=tuple(rows))
        elif failure is None:
            return
    raise failure


def _columnar_blocks(file: Path) -> Iterator[Block]:
    form, packed = str(file_format(file)), is_packed(file)
    if not file.stat().st_size:
        return
    spans = group_spans(file, BLOCK_BYTES) if form == ".parquet" and not packed else []
    for start, stop, first in spans:
        yield Block(file, "groups", first, span=(start, stop))
    if not spans:
        with opened(file) as stream:
            for first, data in batches(stream, file, form, packed):
                yield Block(file, "batch", first, data=data)


_BLOCKS: dict[str, Callable[[Path], Iterator[Block]]] = {
    ".jsonl": _line_blocks,
    ".ndjson": _line_blocks,
    ".json": _json_blocks,
    ".csv": _csv_blocks,
    ".parquet": _columnar_blocks,
    ".arrow": _columnar_blocks,
    ".feather": _columnar_blocks,
}
