"""What preparing a source has found, and what a snapshot says of itself."""

from typing import Any

from pydantic import Field

from models.contract import Contract
from models.data_rules import Action, DataRules, Rule
from models.sources import BaseModelSource

CARD_VERSION = 2
"""Layout of a snapshot's folder: 1 had `rows.jsonl` and no card, 2 has `rows.parquet` and `card.json`."""


class Cleaning(Contract):
    """What a recipe asks of the rows of a dataset."""

    rules: DataRules = DataRules()
    """What becomes of rows that break a rule."""
    model: BaseModelSource | None = None
    """Whose special tokens are looked for, and whose tokenizer measures; none: neither."""
    max_tokens: int | None = None
    """Most tokens that the stage of the rows takes; none: it has no limit."""


class RuleCount(Contract):
    """Rows of a source that break one rule."""

    rule: Rule
    """The rule."""
    action: Action
    """What became of them."""
    rows: int
    """Number of rows."""
    examples: tuple[str, ...] = ()
    """The first of them: place, column, value seen, rule and remedy."""


class TokenStatistics(Contract):
    """Tokens of a snapshot's rows: of each prompt with the longest reply to it."""

    total: int
    """Sum over all rows."""
    mean: float
    """Mean over the rows."""
    median: int
    """Half of the rows have at most so many."""
    p99: int
    """99 of 100 rows have at most so many."""
    longest: int
    """Of the row with the most."""
    limit: int | None = None
    """Most tokens that the stage takes."""
    rows_over: int = 0
    """Rows with more than that."""
    tokens_cut: int = 0
    """What would be lost if they were cut."""
    tokens_dropped: int = 0
    """What would be lost if they were dropped."""


class PartCount(Contract):
    """One part of a mixture."""

    source: str
    """The part's path or hub id."""
    weight: float
    """Its weight in the recipe."""
    available: int
    """Rows that could be taken from it; those that an earlier part has, too, are not counted."""
    rows: int
    """Rows taken."""


class Prepared(Contract):
    """Rows in normal form, written but not published."""

    rows: int
    """Rows that will be used."""
    read: int
    """Rows of the source that were looked at."""
    duplicates: int
    """Rows left out because an earlier one is equal."""
    unpaired: int = 0
    """Rows left out because nothing was there to make a pair with them."""
    other_side: int = 0
    """Rows on the other side of the held-out split."""
    recognised: str = ""
    """The format: what was recognised, how it is read, and what of it is left out; of a mixture, for each part."""
    problems: tuple[RuleCount, ...] = ()
    """Rules that rows break, duplicates included, most rows first."""
    remarks: tuple[str, ...] = ()
    """What was not looked for in all rows."""
    rows_sha256: str
    """SHA-256 over the rows' canonical JSON, one a line, 64 hexadecimal digits."""
    size_bytes: int
    """Size of that JSON."""
    longest_rows: tuple[dict[str, Any], ...] = Field((), repr=False)
    """The rows with the longest texts, longest first."""
    tokens: TokenStatistics | None = None
    """Where they were counted."""
    parts: tuple[PartCount, ...] = ()
    """The parts of a mixture."""

    @property
    def identity(self) -> dict[str, str]:
        """What decides the snapshot of these rows, as JSON data."""
        return {"rows_sha256": self.rows_sha256}


class SnapshotCard(Contract):
    """`card.json` of a snapshot: what it holds, where that came from, and what was done to it."""

    schema_version: int = CARD_VERSION
    """Layout of the folder."""
    digest: str
    """SHA-256 of the rows' canonical JSON."""
    role: str
    """What the rows are for: `sft`, `preference` or `prompts`."""
    source: dict[str, Any]
    """The source as the recipe names it, local paths without their folders."""
    files: dict[str, str] = {}
    """Digests of local files, by name."""
    revision: str | None = None
    """Commit of a hub dataset."""
    license: str | None = None
    """What recipe or hub say of it."""
    rows_read: int
    """Rows of the source."""
    rows: int
    """Rows of the snapshot."""
    rules: dict[str, int] = {}
    """How many rows each rule has left out or mended, by the rule's name."""
    problems: tuple[RuleCount, ...] = ()
    """Rules that rows break, with what became of these rows; those left out or mended are listed in `dropped.jsonl`."""
    remarks: tuple[str, ...] = ()
    """What was not looked for in all rows."""
    other_side: int = 0
    """Rows on the other side of the held-out split."""
    system_prompt: str | None = None
    """What was put before conversations without a system message."""
    parts: tuple[PartCount, ...] = ()
    """The parts of a mixture, with the rows taken from each."""
    tokens: TokenStatistics | None = None
    """Where they were counted."""
    recognised: str = ""
    """The format: what was recognised, how it is read, and what of it is left out; of a mixture, for each part."""
    example: dict[str, Any] | None = None
    """A row as the chat template renders it, and its tokens; none: not rendered."""
