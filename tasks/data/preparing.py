"""Sources read, converted, checked and written as a snapshot's rows, in bounded memory and on all cores.

A small source is read in this process. Of a larger one, worker processes read, check and measure blocks; this process
keeps their order, drops duplicates and writes. What comes out depends neither on the number of workers nor on how the
rows are spread over files.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from models.data_rules import Rule
from models.errors import InputError
from models.preparation import Prepared
from models.sources import RowSource
from tasks.data.conversion import Portion, Wanted, portion_of
from tasks.data.formats.format import Format
from tasks.data.formats.reading import Paired, Role
from tasks.data.formats.recognition import SAMPLE_ROWS
from tasks.data.gathering import Gathering
from tasks.data.readers import Block, Row, file_blocks, no_rows, read_block
from tasks.data.rows import no_pairs, recognised, telling
from tasks.data.workers import InThisProcess, Workers

_SMALL_BYTES = 8 << 20
"""Files of at most so many bytes are converted before a worker has started."""
PORTION_ROWS = 1024
FETCHED = "fetched.parquet"
"""Name of the file that holds the rows of a hub dataset."""


@dataclass(frozen=True)
class Manner:
    """How sources are prepared; none of it changes what comes out."""

    workers: int | None = None
    """Processes; 0: none but this one. Default: none for small files, else as many as there are cores."""
    on_progress: Callable[[int], None] = lambda rows: None
    """Told how many rows of the source were read."""


def prepare(source: RowSource, files: Sequence[Path], wanted: Wanted, folder: Path, manner: Manner) -> Prepared:
    """Write the rows of files to a folder in normal form.

    Args:
        source: What the files are of; gives `max_rows`, and its name where the rows come from a hub.
        files: Local files, in order.
        wanted: What the rows are to become.
        folder: An empty folder.
        manner: How.

    Raises:
        InputError: some rows cannot be used, or none is left; the message gives the first three problems, each with
            file, row, column, value, rule and remedy, and the number of further ones.
        Killed, StageError: a worker ended.
        Stopped: this process is to end.
    """
    gathered = gather(source, files, Gathering(folder, wanted), manner)
    prepared, form = gathered.finish(), gathered.wanted.form
    if prepared.rows:
        return prepared
    if form and form.combine and wanted.part == "all" and not left_out_by_rules(prepared):
        raise no_pairs(source, prepared.read, form)
    raise none_left(source.label, wanted, prepared)


def none_left(label: str, wanted: Wanted, prepared: Prepared) -> InputError:
    """What to say of a source of which data rules, a split or a mixture leave nothing."""
    dropped = left_out_by_rules(prepared)
    if not dropped:
        seen = f"no row of part '{wanted.part}' is there with heldout_share {wanted.heldout_share:g}"
        return InputError(f"{label}: {seen}; take another share, or add rows")
    told = [
        f"data_rules leave out {sum(dropped.values())} ({', '.join(f'{rule} {dropped[rule]}' for rule in dropped)})"
    ]
    told += [f"{prepared.unpaired} make no pair"] if prepared.unpaired else []
    side = f"{prepared.other_side} are on the other side of heldout_share {wanted.heldout_share:g}"
    told += [side] if prepared.other_side else []
    return InputError(
        f"{label}: no row is left of {prepared.read}: {', '.join(told)}; mend the rows, or change the rules"
    )


def left_out_by_rules(prepared: Prepared) -> dict[Rule, int]:
    """Rows that broke a rule and were left out, by rule; of duplicates, one is kept."""
    return {each.rule: each.rows for each in prepared.problems if each.action == "drop" and each.rule != "duplicate"}


def gather(source: RowSource, files: Sequence[Path], gathering: Gathering, manner: Manner) -> Gathering:
    """Recognise the format of files and take all their rows; what is wrong with them is noted. See `prepare`."""
    try:
        form = _recognised(source, files, gathering.wanted.role)
    except InputError as error:
        gathering.note(str(error))
        return gathering
    wanted = gathering.wanted = replace(gathering.wanted, form=form)
    count = _workers(files, wanted) if manner.workers is None else manner.workers
    uncombined: list[Row] = []
    with Workers(wanted, count) if count else InThisProcess(wanted) as converter:
        try:
            for portion in _limited(converter, _blocks(files, source), source.max_rows):
                gathering.take(portion)
                uncombined.extend(portion.uncombined)
                manner.on_progress(gathering.read)
        except InputError as error:
            gathering.note(str(error))
    if form.combine and not gathering.findings.whole:
        try:
            _combine(form.combine(uncombined), gathering)
        except InputError as error:
            gathering.note(f"{source.label}: {error}")
    return gathering


def _recognised(source: RowSource, files: Sequence[Path], role: Role) -> Format:
    """The format of the rows that the files begin with.

    Raises:
        InputError: they cannot be read, or have no known format.
    """
    entries = telling(entry for block in _blocks(files, source) for entry in read_block(block))
    first = list(islice(entries, min(SAMPLE_ROWS, source.max_rows or SAMPLE_ROWS)))
    if not first:
        raise no_rows(files[0])
    return recognised(first, role, source)


def _combine(paired: Paired, gathering: Gathering) -> None:
    """Take the pairs that were made of all rows. Their tokens are not counted: this process imports no tokenizer."""
    wanted = replace(gathering.wanted, tokenizer=None)
    for start in range(0, len(paired.rows), PORTION_ROWS):
        portion = portion_of(paired.rows[start : start + PORTION_ROWS], wanted)
        gathering.take(replace(portion, read=0))
    gathering.unpaired = paired.left_out


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


def _limited(converter: InThisProcess, blocks: Iterable[Block], most: int | None) -> Iterator[Portion]:
    """The portions of the first `most` rows.

    Raises:
        InputError: a file that is read has no rows, or cannot be read to its end.
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
        if portion.failure:
            raise InputError(portion.failure)
        left = None if left is None else left - portion.read
        if left == 0:
            return
    if current and not found:
        raise no_rows(current)
