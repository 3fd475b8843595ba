"""Rows of a hub dataset, written to a local file by a process that may import `datasets`."""

from pathlib import Path

from models.errors import InputError
from models.sources import RowSource
from tasks.data.sources import load_from_hub

_BATCH_ROWS = 1024


def write_hub_rows(source: RowSource, file: Path) -> None:
    """Fetch a hub dataset and write the first `max_rows` of its rows as Parquet, a batch at a time.

    Raises:
        InputError: it cannot be loaded, or has no rows.
    """
    import pyarrow.parquet

    rows = load_from_hub(source)
    if source.max_rows:
        rows = rows.select(range(min(source.max_rows, len(rows))))
    writer = None
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is None:
        raise InputError(f"{source.path}: no rows were read; name another split")
    writer.close()
