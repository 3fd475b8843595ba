"""What is known of a source's rows so far, and the file that they are written to."""

import hashlib
import heapq
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from models.data_rules import Action, Rule
from models.errors import InputError
from models.preparation import Prepared, TokenStatistics
from tasks.data.cleaning import SHORTENED, Problem
from tasks.data.conversion import LONGEST, Portion, Wanted
from tasks.data.left_out import Findings
from tasks.data.lines import Row
from tasks.data.repeats import Repeats
from tasks.data.snapshot import Writer


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
    tokens: "array[int]" = field(default_factory=lambda: array("Q"))
    """Tokens of each row; empty where they are not counted."""

    def __post_init__(self) -> None:
        self._writer = Writer(self.folder, self.wanted.role)
        self._sha256 = hashlib.sha256()
        self._longest: list[tuple[int, int, bytes]] = []
        self._other_side = 0
        self.findings = Findings(self.folder, self.wanted.data_rules)
        self.repeats: Repeats | None = Repeats(self.wanted.data_rules, self.wanted.role)

    def take(self, portion: Portion) -> None:
        """Add a portion's rows, save those that are there already."""
        self.read += portion.read
        self._other_side += portion.accepted - portion.rows
        self.findings.note(*portion.problems)
        rows = zip(portion.places, portion.row_digests(), _lines(portion), strict=True)
        keep = [self._is_kept(*row) for row in rows]
        kept = sum(keep)
        self._note_longest(portion, keep)
        whole = kept == portion.rows
        sizes = portion.sizes if whole else array("Q", compress(portion.sizes, keep))
        for line in (portion.lines,) if whole else compress(_lines(portion), keep):
            self._sha256.update(line)
        self._writer.add(portion.table, sizes, None if whole else keep)
        self.tokens.extend(compress(portion.tokens, keep))
        self.rows += kept
        self.size_bytes += sum(sizes)

    def note(self, message: str) -> None:
        """Add what is wrong with a file as a whole."""
        self.findings.note(Problem("", "wrong_type", message))

    def finish(self) -> Prepared:
        """Complete the file and say what it holds.

        Raises:
            InputError: there were problems that end the run; the message gives the first three of each rule and the
                number of further ones.
        """
        self._writer.close()
        refusal = self.findings.refusal(self.read)
        if refusal:
            raise InputError(refusal)
        return Prepared(
            rows=self.rows,
            read=self.read,
            duplicates=self.duplicates,
            unpaired=self.unpaired,
            recognised=self.wanted.form.sentence if self.wanted.form else "",
            problems=self.findings.counts,
            remarks=tuple(filter(None, (self.repeats.remark,) if self.repeats else ())),
            other_side=self._other_side,
            rows_sha256=self._sha256.hexdigest(),
            size_bytes=self.size_bytes,
            longest_rows=tuple(map(_parsed, sorted(self._longest, reverse=True))),
            tokens=token_statistics(self.tokens, self.wanted.max_tokens),
        )

    def _is_kept(self, place: str, digest: bytes, line: bytes) -> bool:
        """Whether a row is kept, given all before it; what it breaks is noted."""
        actions = [self._told(place, line, *found) for found in self._repeated(digest, line)]
        if "drop" in actions or "error" in actions:
            return False
        self.seen.setdefault(digest)
        return True

    def _repeated(self, digest: bytes, line: bytes) -> Iterator[tuple[Rule, str]]:
        if digest in self.seen:
            yield "duplicate", "an earlier row is the same; rows should differ; keep one"
        elif self.repeats and self.repeats.are_looked_for:
            yield from self.repeats.of(line)

    def _told(self, place: str, line: bytes, rule: Rule, message: str) -> Action:
        action = self.wanted.data_rules.of(rule)
        self.duplicates += rule == "duplicate" and action == "drop"
        self.findings.note(Problem(place, rule, message, action, line[:SHORTENED].decode(errors="ignore")))
        return action

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


def token_statistics(tokens: "array[int]", limit: int | None = None) -> TokenStatistics | None:
    """Summary of the tokens of all rows, and what a limit would cost; none where none were counted."""
    if not tokens:
        return None
    ordered = sorted(tokens)
    count, total = len(ordered), sum(ordered)
    over = [length for length in ordered if limit is not None and length > limit]
    return TokenStatistics(
        total=total,
        mean=total / count,
        median=ordered[(count - 1) // 2],
        p99=ordered[(99 * count - 1) // 100],
        longest=ordered[-1],
        limit=limit,
        rows_over=len(over),
        tokens_cut=sum(over) - len(over) * (limit or 0),
        tokens_dropped=sum(over),
    )
