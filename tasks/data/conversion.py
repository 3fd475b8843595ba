"""Blocks of a source become portions of a snapshot: rows in normal form, counted, measured and ready to be written.

This is what worker processes do; it depends on the block and on what is wanted alone.
"""

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from models.data_rules import DataRules
from models.errors import InputError
from models.rewards import Reward, Verifier
from tasks.data.cleaning import Cleaner, Problem, shortened
from tasks.data.formats.format import Format
from tasks.data.formats.reading import Role
from tasks.data.heldout import RUN_WORDS, held_out
from tasks.data.identity import DIGEST_BYTES, canonical_line, is_heldout, line_digest, prompt_id
from tasks.data.problems import shown
from tasks.data.readers import Block, Entry, Row, read_block
from tasks.data.rows import converted, with_system_prompt
from tasks.data.snapshot import table_bytes
from tasks.data.tokens import count_tokens

T = TypeVar("T")
LONGEST = 8
"""Rows whose tokens are counted: the one with the most characters need not have the most tokens."""
ENDS = {"sft": ("assistant",), "preference": ("assistant",), "prompts": ("user", "tool")}
"""Roles that the conversations of rows may end with."""
_SEVERAL = "rows made of several"
"""Place of a row that was made of several."""
_CONVERSATIONS = ("prompt", "completion", "chosen", "rejected")


@dataclass(frozen=True)
class HeldOutSnapshot:
    """Prepared rows that are not to be trained on."""

    folder: Path
    """Where they lie."""
    rows_sha256: str
    """What they are known by."""


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
    """A folder with a tokenizer and a chat template, or a GGUF file, with which tokens are counted."""
    chat_template: str | None = None
    """Takes the place of the tokenizer's own."""
    max_tokens: int | None = None
    """Most tokens that the rows' stage takes; none: it has no limit."""
    data_rules: DataRules = field(default_factory=DataRules)
    """What becomes of rows that break a rule."""
    special_tokens: tuple[str, ...] = ()
    """Of the model that will read the rows."""
    heldout: tuple[HeldOutSnapshot, ...] = ()
    """Rows with their prompts or words are left out, as the rules say."""


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
    places: tuple[str, ...] = ()
    """File and number of each row."""
    problems: tuple[Problem, ...] = ()
    """Rules that rows break, with what becomes of these rows."""
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
    cleaner = Cleaner(wanted.data_rules, wanted.special_tokens, ENDS[wanted.role])
    rows: list[Row] = []
    places: list[str] = []
    read, failure = 0, ""
    try:
        for place, entry in islice(read_block(block), most):
            read += 1
            for where, part in _parts(place, entry, form):
                row = cleaner.cleaned(where, part, lambda given: converted(given, form, wanted.rules))
                if row is not None:
                    rows.append(row)
                    places.append(where)
    except InputError as error:
        failure = str(error)
    apart = tuple(rows) if form.combine else ()
    portion = portion_of([] if apart else rows, wanted, () if apart else places)
    problems = (*cleaner.problems, *portion.problems)
    return replace(portion, read=read, problems=problems, failure=failure, uncombined=apart)


def _parts(place: str, entry: Row | InputError, form: Format) -> Iterator[Entry]:
    """The rows that a row stands for; of several, each has its number in its place."""
    parts: Sequence[Row | InputError] = [entry] if isinstance(entry, InputError) else form.split(entry)
    for number, part in enumerate(parts, 1):
        yield (f"{place}, instance {number}" if len(parts) > 1 else place), part


class _Given(NamedTuple):
    """A row in normal form on its way into a portion."""

    row: Row
    prompt: bytes
    place: str


def portion_of(rows: Sequence[Row], wanted: Wanted, places: Sequence[str] = ()) -> Portion:
    """Rows in normal form with the system prompt, without those of the other side of a split and those left out.

    Args:
        rows: In normal form.
        wanted: What they are to become.
        places: File and number of each; none: they were made of several.
    """
    spoken = [with_system_prompt(row, wanted.system_prompt) for row in rows]
    given = [_Given(row, prompt_id(row), place) for row, place in zip(spoken, places or repeat(_SEVERAL), strict=False)]
    kept = [each for each in given if _is_on_side(each, wanted)]
    leaks = [_leak(each, wanted) for each in kept] if wanted.heldout else []
    kept = _staying(kept, leaks)
    tokens = _tokens(kept, wanted)
    long = [_too_long(each, length, wanted) for each, length in zip(kept, tokens, strict=False)]
    kept, tokens = _staying(kept, long), _staying(tokens, long)
    problems = [each for each in (*leaks, *long) if each]
    lines = [canonical_line(each.row) for each in kept]
    accepted = len(given) - sum(each.action != "keep" for each in problems)
    return Portion(
        read=accepted,
        accepted=accepted,
        lines=b"".join(lines),
        sizes=array("Q", map(len, lines)),
        digests=b"".join(line_digest(line) for line in lines),
        table=table_bytes([each.row for each in kept], [each.prompt for each in kept], wanted.role),
        longest=_longest([each.row for each in kept]),
        tokens=array("Q", tokens),
        places=tuple(each.place for each in kept),
        problems=tuple(problems),
    )


def _tokens(given: Sequence[_Given], wanted: Wanted) -> list[int]:
    rows = [each.row for each in given]
    return count_tokens(rows, wanted.tokenizer, wanted.chat_template) if wanted.tokenizer else []


def _is_on_side(given: _Given, wanted: Wanted) -> bool:
    return wanted.part == "all" or is_heldout(given.prompt, wanted.heldout_share) == (wanted.part == "heldout")


def _staying(values: list[T], found: Sequence[Problem | None]) -> list[T]:
    """The values of rows that stay, given what was found in each; all, where nothing was looked for."""
    if not found:
        return values
    return [value for value, each in zip(values, found, strict=True) if not each or each.action == "keep"]


def _leak(given: _Given, wanted: Wanted) -> Problem | None:
    """Why a row may not be trained on, given what is held out."""
    near = wanted.data_rules.near_leak == "drop"
    held = held_out(tuple(each.folder for each in wanted.heldout), most=None if near else 0)
    if wanted.data_rules.leak == "drop" and given.prompt in held.prompts:
        seen = f"column 'prompt': {shown(given.row['prompt'][-1].get('content'))} is a held-out prompt"
        told = f"{seen}; figures on what was trained on say nothing; remove it from one of the two"
        return Problem(given.place, "leak", told, "drop", shortened(given.row))
    run = held.shared_run(given.prompt, given.row)
    if run:
        seen = f"the row shares {RUN_WORDS} words in a row with a held-out one, {shown(' '.join(run))}"
        return Problem(given.place, "near_leak", f"{seen}; they may give its answer away", "drop", shortened(given.row))
    return None


def _too_long(given: _Given, tokens: int, wanted: Wanted) -> Problem | None:
    limit = wanted.max_tokens
    if limit is None or tokens <= limit:
        return None
    told = f"the row has {tokens} tokens; its stage takes {limit}; shorten it, or raise max_length"
    return Problem(given.place, "too_long", told, wanted.data_rules.too_long, shortened(given.row))


def _longest(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    measured = ((characters(row), -index) for index, row in enumerate(rows))
    return tuple((size, -index) for size, index in heapq.nlargest(LONGEST, measured))


def characters(row: Row) -> int:
    """Size of the prompt with the longest reply to it, and of the tools."""
    lengths = {part: sum(map(_spoken, row[part])) for part in _CONVERSATIONS if part in row}
    return lengths.pop("prompt") + max(lengths.values(), default=0) + len(row.get("tools", ""))


def _spoken(turn: Row) -> int:
    return len(turn.get("content") or "") + len(turn.get("tool_calls", ""))
