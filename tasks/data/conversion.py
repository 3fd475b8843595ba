"""Blocks of a source become portions of a snapshot: rows in normal form, counted, measured and ready to be written.

This is what worker processes do; it depends on the block and on what is wanted alone.
"""

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from models.errors import InputError
from models.rewards import Reward, Verifier
from tasks.data.formats.format import Format
from tasks.data.identity import DIGEST_BYTES, canonical_line, is_heldout, line_digest, prompt_id
from tasks.data.problems import RowProblem
from tasks.data.readers import Block, Row, read_block
from tasks.data.rows import Role, converted, with_system_prompt
from tasks.data.snapshot import table_bytes
from tasks.data.tokens import count_tokens

LONGEST = 8
"""Rows whose tokens are counted: the one with the most characters need not have the most tokens."""
_CONVERSATIONS = ("prompt", "completion", "chosen", "rejected")


@dataclass(frozen=True)
class Wanted:
    """What the rows of a source are to become."""

    role: Role
    """What they are for."""
    system_prompt: str | None = None
    """Put before each prompt without a system message."""
    rules: tuple[Reward | Verifier, ...] = ()
    """What reads the rows of prompts, which must have what it reads."""
    heldout_share: float = 0.0
    """Share of the prompts that are held out, from 0 to 1."""
    part: Literal["all", "training", "heldout"] = "all"
    """Which side of that split to keep."""
    form: Format | None = None
    """The format of the source's rows; none: not recognised yet."""
    tokenizer: Path | None = None
    """A folder with a tokenizer and a chat template, with which tokens are counted."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    place: str
    """File and number of the row; empty where the message names the file as a whole."""
    rule: str
    """The rule that it breaks, as `models.data_rules` names it."""
    message: str
    """Column, value seen, rule and remedy."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(frozen=True)
class Portion:
    """What became of a block."""

    read: int
    """Rows looked at, those with problems included."""
    accepted: int
    """Rows that fit, those on the other side of a split included."""
    lines: bytes
    """Canonical JSON of the rows that are kept, one a line."""
    sizes: "array[int]"
    """Bytes of each line, its end included."""
    digests: bytes
    """Digest of each line, `DIGEST_BYTES` each."""
    table: bytes
    """The rows as they are written, an Arrow stream."""
    longest: tuple[tuple[int, int], ...]
    """Characters and index of the rows with the longest texts, longest first."""
    tokens: "array[int]"
    """Tokens of each row; empty where they are not counted."""
    problems: tuple[Problem, ...] = ()
    """Rows that cannot be used."""
    uncombined: tuple[Row, ...] = ()
    """Rows of which pairs are to be made once all are there; they are not among the rows above."""
    failure: str = ""
    """Why the rest of the file cannot be read."""

    @property
    def rows(self) -> int:
        """Number of rows that are kept."""
        return len(self.sizes)

    def row_digests(self) -> Iterator[bytes]:
        """The digest of each row."""
        return (self.digests[at : at + DIGEST_BYTES] for at in range(0, len(self.digests), DIGEST_BYTES))

    def line(self, index: int) -> bytes:
        """One row's canonical JSON, without the line's end."""
        start = sum(self.sizes[:index])
        return self.lines[start : start + self.sizes[index] - 1]


def convert(block: Block, wanted: Wanted, most: int | None = None) -> Portion:
    """Bring a block's rows, at most so many of them, to normal form, and measure them.

    Rows of which pairs are yet to be made are left to be combined.
    """
    form = wanted.form
    if form is None:
        raise ValueError("the format of the rows has to be recognised before they are converted")
    rows, problems, read, failure = [], [], 0, ""
    try:
        for place, entry in islice(read_block(block), most):
            read += 1
            try:
                rows.append(converted(entry, form, wanted.rules))
            except InputError as error:
                rule = error.rule if isinstance(error, RowProblem) else "wrong_type"
                problems.append(Problem(place, rule, str(error)))
    except InputError as error:
        failure = str(error)
    apart = tuple(rows) if form.combine else ()
    portion = portion_of([] if apart else rows, wanted)
    return replace(portion, read=read, problems=tuple(problems), failure=failure, uncombined=apart)


def portion_of(rows: Sequence[Row], wanted: Wanted) -> Portion:
    """Rows in normal form with the system prompt, those of the other side of a split left out."""
    rows = [with_system_prompt(row, wanted.system_prompt) for row in rows]
    prompts, accepted = [prompt_id(row) for row in rows], len(rows)
    if wanted.part != "all":
        kept = [is_heldout(prompt, wanted.heldout_share) == (wanted.part == "heldout") for prompt in prompts]
        rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
        prompts = [prompt for prompt, keep in zip(prompts, kept, strict=True) if keep]
    lines = [canonical_line(row) for row in rows]
    return Portion(
        read=accepted,
        accepted=accepted,
        lines=b"".join(lines),
        sizes=array("Q", map(len, lines)),
        digests=b"".join(line_digest(line) for line in lines),
        table=table_bytes(rows, prompts, wanted.role),
        longest=_longest(rows),
        tokens=array("Q", count_tokens(rows, wanted.tokenizer) if wanted.tokenizer else ()),
    )


def _longest(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    measured = ((characters(row), -index) for index, row in enumerate(rows))
    return tuple((size, -index) for size, index in heapq.nlargest(LONGEST, measured))


def characters(row: Row) -> int:
    """Size of the prompt with the longest reply to it, and of the tools."""
    lengths = {part: sum(map(_spoken, row[part])) for part in _CONVERSATIONS if part in row}
    return lengths.pop("prompt") + max(lengths.values(), default=0) + len(row.get("tools", ""))


def _spoken(turn: Row) -> int:
    return len(turn.get("content") or "") + len(turn.get("tool_calls", ""))
