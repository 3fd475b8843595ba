"""A snapshot's rows on disk: one Parquet file, written as the rows come and read as they are asked for.

    prompt, completion, chosen, rejected   list of {role, content, more}; more: JSON of a message's further keys
    answer                                 list of accepted texts
    kind                                   text
    more                                   JSON of the row's further keys, such as `extra`
    prompt_id                              digest of the conversation that a reply is asked for

A role's file has the columns that its rows have, `more` and `prompt_id`. The same rows give the same bytes, with one
version of pyarrow. Snapshots of earlier versions hold `rows.jsonl` instead, a row's canonical JSON a line.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.fingerprint import canonical_json
from tasks.data.identity import canonical_line, prompt_id
from tasks.data.lines import Row

ROWS = "rows.parquet"
ROWS_BEFORE = "rows.jsonl"
"""Name of the file that earlier versions wrote."""
_COLUMNS = {
    "sft": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt", "answer"),
}
_GROUP_ROWS = 8192
_GROUP_BYTES = 16 << 20
"""A row group ends with whichever is reached first, so that none takes much memory, however long its rows."""


@cache
def schema(role: str) -> Any:
    """The Arrow schema of a role's rows."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("more", pa.string())])
    types = {"answer": pa.list_(pa.string())}
    columns = [(name, types.get(name, pa.list_(message))) for name in _COLUMNS[role]]
    return pa.schema([*columns, ("kind", pa.string()), ("more", pa.string()), ("prompt_id", pa.binary(16))])


def table_bytes(rows: Sequence[Row], prompt_ids: Sequence[bytes], role: str) -> bytes:
    """Rows in normal form, and the digests of their prompts, as an Arrow stream with the columns of the role."""
    import pyarrow as pa

    known = (*_COLUMNS[role], "kind")
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in known}
    for name in set(known) - {"answer", "kind"}:
        columns[name] = [turns and [_stored(turn) for turn in turns] for turns in columns[name]]
    columns["more"] = [_more(row, known) for row in rows]
    columns["prompt_id"] = prompt_ids
    sink, shape = pa.BufferOutputStream(), schema(role)
    arrays = [pa.array(columns[name], shape.field(name).type) for name in shape.names]
    with pa.ipc.new_stream(sink, shape) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=shape))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _stored(message: Row) -> Row:
    """A message as a struct: what is no text of a known key goes to `more`."""
    if len(message) == 2 and isinstance(message.get("content"), str):
        return message
    texts = {key: message[key] for key in ("role", "content") if isinstance(message.get(key), str)}
    return texts | {"more": _more(message, texts)}


def _more(row: Row, known: Collection[str]) -> str | None:
    further = {key: value for key, value in row.items() if key not in known}
    return canonical_json(further) if further else None


class Writer:
    """Writes a snapshot's rows; where a row group ends depends on the rows alone, not on how they come."""

    def __init__(self, folder: Path, role: str) -> None:
        """Open the file; `close` completes it.

        Args:
            folder: The snapshot's folder.
            role: What the rows are for.
        """
        import pyarrow.parquet

        options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["kind"], "write_statistics": False}
        self._file = pyarrow.parquet.ParquetWriter(folder / ROWS, schema(role), **options)
        self._parts: list[Any] = []
        self._rows = self._bytes = 0

    def add(self, table: bytes, sizes: Sequence[int], keep: Sequence[bool] | None = None) -> None:
        """Append rows.

        Args:
            table: As `table_bytes` gives them.
            sizes: Bytes of each kept row's canonical JSON.
            keep: Whether to take each row; default: all.
        """
        import pyarrow as pa

        rows = pa.ipc.open_stream(table).read_all()
        rows = rows if keep is None else rows.filter(pa.array(keep))
        start = 0
        for stop, size in enumerate(sizes, 1):
            self._rows += 1
            self._bytes += size
            if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
                self._parts.append(rows.slice(start, stop - start))
                self._write_group()
                start = stop
        self._parts.append(rows.slice(start))

    def _write_group(self) -> None:
        import pyarrow as pa

        group = pa.concat_tables(self._parts).combine_chunks()
        if group.num_rows:
            self._file.write_table(group, row_group_size=group.num_rows)
        self._parts, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write what is left."""
        if self._parts:
            self._write_group()
        self._file.close()


def first_row(folder: Path) -> Row | None:
    """The first row of a snapshot; none of an empty one."""
    return next(read_rows(folder), None)


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of a snapshot in order, as they were when it was made."""
    import pyarrow.parquet

    if (folder / ROWS_BEFORE).exists():
        with (folder / ROWS_BEFORE).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
        return
    with pyarrow.parquet.ParquetFile(folder / ROWS) as file:
        columns = [name for name in file.schema_arrow.names if name != "prompt_id"]
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from map(_restored_row, batch.to_pylist())


def read_prompt_ids(folder: Path) -> Iterator[bytes]:
    """The digest of each row's prompt, in order; of what is written in Parquet, only these are read."""
    import pyarrow.parquet

    if (folder / ROWS_BEFORE).exists():
        yield from map(prompt_id, read_rows(folder))
        return
    with pyarrow.parquet.ParquetFile(folder / ROWS) as file:
        for batch in file.iter_batches(columns=["prompt_id"]):
            yield from batch.column(0).to_pylist()


def _restored_row(stored: Row) -> Row:
    """A row with its keys in the order of canonical JSON; what it does not have is absent."""
    row = {key: value for key, value in stored.items() if value is not None and key != "more"}
    row |= {key: [_restored(turn) for turn in value] for key, value in row.items() if _is_conversation(value)}
    return dict(sorted((row | (json.loads(stored["more"]) if stored["more"] else {})).items()))


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _restored(turn: Row) -> Row:
    if turn["more"] is None and turn["content"] is not None:
        return {"content": turn["content"], "role": turn["role"]}
    texts = {key: turn[key] for key in ("content", "role") if turn[key] is not None}
    return dict(sorted((texts | (json.loads(turn["more"]) if turn["more"] else {})).items()))


def write_rows(folder: Path, rows: Iterable[Row], role: str) -> None:
    """Write rows in normal form that are held in memory."""
    held = list(rows)
    writer = Writer(folder, role)
    writer.add(table_bytes(held, [*map(prompt_id, held)], role), [len(canonical_line(row)) for row in held])
    writer.close()
