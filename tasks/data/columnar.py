"""Rows of Parquet and Arrow files, taken in batches so that a large one is never held whole.

Such a file gives every object of a column the members of all its objects, and what one of them does not have is null.
Members that are null are therefore left out: nobody wrote them, and the same rows as JSONL do not have them.
"""

import io
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import InputError
from tasks.data.lines import Row

_BATCH_ROWS = 1024
_GROUP_BYTES = 64 << 20
"""A larger row group is read here in batches, not handed out by its number."""
_NO_PYTHON_VALUE = (ValueError, OverflowError, KeyError)
"""What a cell raises that Python has no value for: a text that is not UTF-8, a year 9999999, an unknown time zone."""


def group_spans(file: Path, block_bytes: int) -> list[tuple[int, int, int]]:
    """Row groups of a Parquet file in spans of about so many bytes: first group, end, and number of the first row.

    Nothing where a row group is too large to be read at once.

    Raises:
        InputError: it is no Parquet file, or names a column twice.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            _check_columns(parquet.schema_arrow.names, file)
            groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    except pyarrow.ArrowException as error:
        raise unreadable(error, file, 1, "Parquet") from error
    sizes, rows = [group.total_byte_size for group in groups], [group.num_rows for group in groups]
    if max(sizes, default=0) > _GROUP_BYTES:
        return []
    cuts, held = [0], 0
    for index, size in enumerate(sizes, 1):
        held += size
        if held >= block_bytes or index == len(sizes):
            cuts.append(index)
            held = 0
    return [(start, stop, 1 + sum(rows[:start])) for start, stop in pairwise(cuts)]


def group_rows(file: Path, start: int, stop: int, first: int) -> Iterator[Row]:
    """The rows of a span of row groups, the first of which is row `first` of the file.

    Raises:
        InputError: they cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    number = first
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(range(start, stop))):
                for row in _rows(batch):
                    number += 1
                    yield row
    except (pyarrow.ArrowException, *_NO_PYTHON_VALUE) as error:
        raise unreadable(error, file, number, "Parquet") from error


def batches(stream: BinaryIO, file: Path, form: str, packed: bool) -> Iterator[tuple[int, bytes]]:
    """Batches of rows as Arrow streams, each with the number of its first row.

    Args:
        stream: The content.
        file: Its name, for messages.
        form: `.parquet`, or another ending for Arrow's own formats.
        packed: Whether the stream unpacks, and cannot jump.

    Raises:
        InputError: the rest of it cannot be read, or a column is named twice.
    """
    import pyarrow

    first = 1
    try:
        for batch in (_parquet_batches if form == ".parquet" else _arrow_batches)(stream, packed):
            _check_columns(batch.schema.names, file)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                part = batch.slice(start, _BATCH_ROWS)
                yield first, as_stream(part)
                first += part.num_rows
    except (pyarrow.ArrowException, *_NO_PYTHON_VALUE) as error:
        raise unreadable(error, file, first, "Parquet" if form == ".parquet" else "Arrow") from error


def as_stream(batch: Any) -> bytes:
    """A batch of rows as one Arrow stream."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def stream_rows(data: bytes, file: Path, first: int) -> Iterator[Row]:
    """The rows of an Arrow stream, the first of which is row `first` of the file.

    Raises:
        InputError: a text in it is not UTF-8.
    """
    import pyarrow

    number = first
    try:
        for batch in pyarrow.ipc.open_stream(data):
            for row in _rows(batch):
                number += 1
                yield row
    except (pyarrow.ArrowException, *_NO_PYTHON_VALUE) as error:
        raise unreadable(error, file, number, "Arrow") from error


def _rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch; where one of them cannot be read, those before it come first."""
    import pyarrow

    try:
        rows = batch.to_pylist()
    except (pyarrow.ArrowException, *_NO_PYTHON_VALUE):
        rows = (batch.slice(index, 1).to_pylist()[0] for index in range(batch.num_rows))
    for row in rows:
        yield {column: _written(value) for column, value in row.items()}


def _written(value: Any) -> Any:
    """A value without the members of objects that are null."""
    if isinstance(value, dict):
        return {key: _written(member) for key, member in value.items() if member is not None}
    return [_written(member) for member in value] if isinstance(value, list) else value


def _check_columns(names: list[str], file: Path) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{file}: it names column '{name}' twice; rename or remove one of them")


def unreadable(error: Exception, file: Path, row: int, form: str) -> InputError:
    """What to say of a file that the library cannot read from that row on."""
    cause = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{file}: row {row}: unreadable {form} ({cause}); write or fetch it again")


def _parquet_batches(stream: BinaryIO, packed: bool) -> Iterator[Any]:
    import pyarrow.parquet

    whole = io.BytesIO(stream.read()) if packed else stream  # its index is at its end
    yield from pyarrow.parquet.ParquetFile(whole).iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(stream: BinaryIO, packed: bool) -> Iterator[Any]:
    """Of both of Arrow's formats: the file, which is also Feather's, and the stream."""
    import pyarrow

    is_file = stream.read(6) == b"ARROW1"
    whole = stream if not packed else io.BytesIO(_rest(stream))
    whole.seek(0)
    if is_file:
        reader = pyarrow.ipc.open_file(whole)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pyarrow.ipc.open_stream(whole)


def _rest(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()
