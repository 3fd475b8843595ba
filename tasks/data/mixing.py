"""Mixtures: as many rows as the scarcest part allows, in the parts' shares, none of them twice.

Which rows of a part are taken, and their order, is decided by their digests: neither the order of files nor a random
state has a say, and one row more in a part exchanges few others.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from models.errors import InputError
from models.preparation import PartCount, Prepared
from models.sources import DatasetSource, MixturePart
from tasks.data.conversion import Wanted, portion_of
from tasks.data.gathering import Gathering
from tasks.data.identity import canonical_line
from tasks.data.left_out import merged
from tasks.data.preparing import PORTION_ROWS, Manner, gather, left_out_by_rules, none_left
from tasks.data.snapshot import read_rows

_BUCKET_BYTES = 16 << 20


@dataclass(frozen=True)
class _Part:
    """One part of a mixture, prepared."""

    asked: MixturePart
    gathered: Gathering
    prepared: Prepared
    digests: list[bytes]

    def last_digest(self, rows: int) -> bytes:
        """The largest digest of the `rows` rows that are taken."""
        return sorted(self.digests)[rows - 1]


def mix(
    source: DatasetSource, files: Sequence[Sequence[Path]], wanted: Wanted, folder: Path, manner: Manner
) -> Prepared:
    """Write a mixture to a folder.

    Args:
        source: The mixture.
        files: Local files of each part, in order.
        wanted: What the rows are to become.
        folder: An empty folder, in which the parts are put down, too.
        manner: How.

    Raises:
        InputError: some rows cannot be used, or a part would give none; one line per problem.
        Killed, StageError: a worker ended.
        Stopped: this process is to end.
    """
    parts = list(_gathered(source, files, wanted, folder, manner))
    for part in parts:
        if not part.digests and (wanted.part != "all" or left_out_by_rules(part.prepared)):
            raise none_left(part.asked.label, wanted, part.prepared)
    counts = _counts(source, [len(part.digests) for part in parts])
    mixed = Gathering(folder, replace(wanted, part="all", tokenizer=None, heldout=()))
    mixed.repeats = None
    buckets = 1 + sum(part.prepared.size_bytes for part in parts) // _BUCKET_BYTES
    for bucket in _spread(parts, [count.rows for count in counts], folder, buckets):
        _take(bucket, mixed)
    sums = {
        key: sum(getattr(part.prepared, key) for part in parts)
        for key in ("read", "duplicates", "unpaired", "other_side")
    }
    told = "; ".join(f"{count.source}: {part.prepared.recognised}" for count, part in zip(counts, parts, strict=True))
    found = merged([part.gathered.findings for part in parts], folder)
    remarks = tuple(f"{part.asked.path}: {remark}" for part in parts for remark in part.prepared.remarks)
    more = {"recognised": told, "parts": counts, "problems": found.counts, "remarks": remarks}
    return mixed.finish().model_copy(update=sums | more)


def _gathered(
    source: DatasetSource, files: Sequence[Sequence[Path]], wanted: Wanted, folder: Path, manner: Manner
) -> Iterator[_Part]:
    """Each part's rows, in a folder of its own; a row that an earlier part has counts as its duplicate."""
    seen: dict[bytes, None] = {}
    problems = []
    wanted = replace(wanted, data_rules=wanted.data_rules.model_copy(update={"duplicate": "drop"}))
    for number, (asked, own) in enumerate(zip(source.mixture, files, strict=True)):
        place = folder / f"part-{number}"
        place.mkdir()
        before = len(seen)
        gathered = gather(asked, own, Gathering(place, wanted, seen), manner)
        try:
            yield _Part(asked, gathered, gathered.finish(), list(islice(seen, before, None)))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _counts(source: DatasetSource, available: list[int]) -> tuple[PartCount, ...]:
    """How many rows each part gives: the most that keep the shares, at most `max_rows` in all."""
    for rows, part in zip(available, source.mixture, strict=True):
        if not rows:
            raise InputError(f"{part.path}: all its rows are in earlier parts, or make no pair; leave it out")
    whole = sum(part.weight for part in source.mixture)
    most = min(rows * whole / part.weight for rows, part in zip(available, source.mixture, strict=True))
    total = min(most, source.max_rows or most)
    counts = []
    for rows, part in zip(available, source.mixture, strict=True):
        taken = min(rows, int(total * part.weight / whole + 1e-6))
        if not taken:
            seen = f"its share of a mixture of {int(total)} rows, weight {part.weight:g} of {whole:g}, is no whole row"
            raise InputError(f"{part.path}: {seen}; give it more weight or the others more rows, or leave it out")
        counts.append(PartCount(source=_name(part.path), weight=part.weight, available=rows, rows=taken))
    return tuple(counts)


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() or Path(path).exists() else path


def _spread(parts: list[_Part], counts: list[int], folder: Path, buckets: int) -> Iterator[list[bytes]]:
    """The rows to take, in buckets that follow each other in order, so that few are held at a time.

    A row is ordered by its digest read backwards: those that are taken have the smallest digests of their part, and
    parts of which few rows are taken would otherwise come first. Each is a line: order, tokens, canonical JSON.
    """
    files = [folder / f"bucket-{number}" for number in range(buckets)]
    with ExitStack() as stack:
        streams = [stack.enter_context(file.open("wb")) for file in files]
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            last = part.last_digest(count)
            tokens = part.gathered.tokens or [0] * len(part.digests)
            rows = zip(part.digests, tokens, read_rows(folder / f"part-{number}"), strict=True)
            for digest, length, row in rows:
                if digest <= last:
                    order = digest[::-1]
                    place = int.from_bytes(order[:4]) * buckets >> 32
                    streams[place].write(b"%s %d %s" % (order.hex().encode(), length, canonical_line(row)))
    for file in files:
        with file.open("rb") as stream:
            yield sorted(stream)
        file.unlink()


def _take(bucket: list[bytes], mixed: Gathering) -> None:
    for start in range(0, len(bucket), PORTION_ROWS):
        parts = [line.split(b" ", 2) for line in bucket[start : start + PORTION_ROWS]]
        portion = portion_of([json.loads(line) for _, _, line in parts], mixed.wanted)
        lengths = [int(tokens) for _, tokens, _ in parts]
        mixed.take(replace(portion, tokens=array("Q", lengths if any(lengths) else ())))
