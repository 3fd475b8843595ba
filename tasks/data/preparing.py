"""Sources read, converted, checked and written as a snapshot's rows, in bounded memory and on all cores.

A small source is read in this process. Of a larger one, worker processes read, check and measure blocks; this process
keeps their order, drops duplicates and writes. What comes out depends neither on the number of workers nor on how the
rows are spread over files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from models.errors import InputError
from models.preparation import Prepared
from models.sources import RowSource
from tasks.data.conversion import Portion, Problem, Wanted
from tasks.data.gathering import Gathering
from tasks.data.readers import Block, file_blocks, no_rows
from tasks.data.workers import InThisProcess, Workers

_SMALL_BYTES = 8 << 20
"""Files of at most so many bytes are converted before a worker has started."""
OnProgress = Callable[[int], None]
"""Told how many rows were read so far."""


def prepare(  # noqa: PLR0913 - what, whence, how, where, and whom to tell
    source: RowSource,
    files: list[Path],
    wanted: Wanted,
    folder: Path,
    workers: int | None = None,
    on_progress: OnProgress = lambda rows: None,
    seen: set[bytes] | None = None,
) -> Prepared:
    """Write the rows of files to a folder in normal form.

    Args:
        source: What the files are of; gives `max_rows`, and its name where the rows come from a hub.
        files: Local files, in order.
        wanted: What the rows are to become.
        folder: An empty folder.
        workers: Processes; 0: none but this one. Default: none for small files, else as many as there are cores.
        on_progress: Told how many rows were read.
        seen: Digests of rows that count as duplicates; the digests of these rows are added.

    Raises:
        InputError: some rows cannot be used; the message gives the first three problems, each with file, row, column,
            value, rule and remedy, and the number of further ones.
        Killed, StageError: a worker ended.
        Stopped: this process is to end.
    """
    gathering = Gathering(folder, wanted, set() if seen is None else seen)
    count = _workers(files, wanted) if workers is None else workers
    with Workers(wanted, count) if count else InThisProcess(wanted) as converter:
        try:
            for portion in _limited(converter, _blocks(files, source), source.max_rows):
                gathering.take(portion)
                on_progress(gathering.read)
                if portion.failure:
                    raise InputError(portion.failure)
        except InputError as error:
            gathering.note(Problem("", "wrong_type", str(error)))
    return gathering.finish()


def _workers(files: Iterable[Path], wanted: Wanted) -> int:
    small = sum(file.stat().st_size for file in files) <= _SMALL_BYTES
    return 0 if small and not wanted.tokenizer else len(os.sched_getaffinity(0))


def _blocks(files: Iterable[Path], source: RowSource) -> Iterator[Block]:
    """The blocks of the files; for each that has none, an empty one."""
    for file in files:
        none = True
        for block in file_blocks(file):
            none = False
            yield replace(block, name=f"{source.path} ({source.split})") if _is_fetched(file, source) else block
        if none:
            yield Block(file, "rows")


def _is_fetched(file: Path, source: RowSource) -> bool:
    """Whether the file was written for a hub dataset, whose name says more than the file's."""
    return file.name == FETCHED and not Path(source.path).exists()


FETCHED = "fetched.parquet"
"""Name of the file that holds the rows of a hub dataset."""


def _limited(converter: InThisProcess, blocks: Iterable[Block], most: int | None) -> Iterator[Portion]:
    """The portions of the first `most` rows.

    Raises:
        InputError: a file that is read has no rows.
    """
    left, current, found = most, None, 0
    for block, whole in converter.portions(blocks):
        if current and block.file != current and not found:
            raise no_rows(current)
        if block.file != current:
            current, found = block.file, 0
        portion = whole
        if left is not None and (whole.read > left or (whole.failure and whole.read >= left)):
            portion = converter.convert(block, left)
        found += portion.read
        yield portion
        left = None if left is None else left - portion.read
        if left == 0:
            return
    if current and not found:
        raise no_rows(current)
