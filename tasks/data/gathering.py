"""What is known of a source's rows so far, and the file that they are written to."""

import hashlib
import heapq
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from models.errors import InputError
from models.preparation import Prepared, TokenStatistics
from tasks.data.conversion import LONGEST, Portion, Problem, Wanted
from tasks.data.lines import Row
from tasks.data.rows import summary
from tasks.data.snapshot import Writer

_KEPT_PROBLEMS = 1000


@dataclass
class Gathering:
    """Takes portions in the order of the source."""

    folder: Path
    """Where the rows are written."""
    wanted: Wanted
    """What they are to become."""
    seen: dict[bytes, None] = field(default_factory=dict)
    """Digests of the rows so far, in their order."""
    read: int = 0
    """Rows looked at."""
    rows: int = 0
    """Rows kept."""
    duplicates: int = 0
    """Rows left out because an earlier one is equal."""
    size_bytes: int = 0
    """Size of the rows' canonical JSON."""
    unpaired: int = 0
    """Rows left out because nothing was there to make a pair with them."""
    problem_count: int = 0
    """Rows that cannot be used."""
    problems: list[Problem] = field(default_factory=list)
    """The first of them."""
    tokens: "array[int]" = field(default_factory=lambda: array("Q"))
    """Tokens of each row; empty where they are not counted."""

    def __post_init__(self) -> None:
        self._writer = Writer(self.folder, self.wanted.role)
        self._sha256 = hashlib.sha256()
        self._longest: list[tuple[int, int, bytes]] = []
        self._accepted = 0

    def take(self, portion: Portion) -> None:
        """Add a portion's rows, save those that are there already."""
        self.read += portion.read
        self._accepted += portion.accepted
        for problem in portion.problems:
            self.note(problem)
        keep = [self._is_new(digest) for digest in portion.row_digests()]
        kept = sum(keep)
        self._note_longest(portion, keep)
        whole = kept == portion.rows
        sizes = portion.sizes if whole else array("Q", compress(portion.sizes, keep))
        for line in (portion.lines,) if whole else compress(_lines(portion), keep):
            self._sha256.update(line)
        self._writer.add(portion.table, sizes, None if whole else keep)
        self.tokens.extend(compress(portion.tokens, keep))
        self.rows += kept
        self.duplicates += portion.rows - kept
        self.size_bytes += sum(sizes)

    def note(self, problem: Problem) -> None:
        """Add a problem; of many, the first are kept."""
        self.problem_count += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)

    def finish(self) -> Prepared:
        """Complete the file and say what it holds.

        Raises:
            InputError: there were problems; the message gives the first three and the number of further ones.
        """
        self._writer.close()
        if self.problem_count:
            raise InputError(summary([str(each) for each in self.problems], self.problem_count, self.read))
        return Prepared(
            rows=self.rows,
            read=self.read,
            duplicates=self.duplicates,
            unpaired=self.unpaired,
            recognised=self.wanted.form.sentence if self.wanted.form else "",
            other_side=self._accepted - self.rows - self.duplicates,
            rows_sha256=self._sha256.hexdigest(),
            size_bytes=self.size_bytes,
            longest_rows=tuple(map(_parsed, sorted(self._longest, reverse=True))),
            tokens=token_statistics(self.tokens),
        )

    def _is_new(self, digest: bytes) -> bool:
        before = len(self.seen)
        self.seen.setdefault(digest)
        return len(self.seen) > before

    def _note_longest(self, portion: Portion, keep: list[bool]) -> None:
        for size, index in portion.longest:
            candidate = (size, -(self.read + index))  # of equal ones, the first
            if keep[index] and (len(self._longest) < LONGEST or candidate > self._longest[0][:2]):
                heapq.heappush(self._longest, (*candidate, portion.line(index)))
                if len(self._longest) > LONGEST:
                    heapq.heappop(self._longest)


def _parsed(entry: tuple[int, int, bytes]) -> Row:
    row: Row = json.loads(entry[2])
    return row


def _lines(portion: Portion) -> Iterator[bytes]:
    start = 0
    for size in portion.sizes:
        yield portion.lines[start : start + size]
        start += size


def token_statistics(tokens: "array[int]") -> TokenStatistics | None:
    """Summary of the tokens of all rows; none where none were counted."""
    if not tokens:
        return None
    ordered = sorted(tokens)
    count, total = len(ordered), sum(ordered)
    middle, high = ordered[(count - 1) // 2], ordered[(99 * count - 1) // 100]
    return TokenStatistics(total=total, mean=total / count, median=middle, p99=high, longest=ordered[-1])
