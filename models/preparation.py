"""What preparing a source has found, and what a snapshot says of itself."""

from typing import Any, Literal

from pydantic import Field

from models.contract import Contract
from models.data_rules import Action, DataRules, Rule
from models.rewards import Verifier
from models.sources import BaseModelSource, DatasetSource

CARD_VERSION = 2
"""Layout of a snapshot's folder: 1 had `rows.jsonl` and no card, 2 has `rows.parquet` and `card.json`."""


class HeldOutUse(Contract):
    """One held-out or evaluation dataset of a recipe."""

    source: DatasetSource
    """Where its rows come from."""
    role: Literal["sft", "preference", "prompts"]
    """What they are for."""
    rules: tuple[Verifier, ...] = ()
    """What reads rows of prompts."""


class Cleaning(Contract):
    """What a recipe asks of the rows of a dataset."""

    rules: DataRules = DataRules()
    """What becomes of rows that break a rule."""
    model: BaseModelSource | None = None
    """Whose special tokens are looked for, and whose tokenizer measures; none: neither."""
    max_tokens: int | None = None
    """Most tokens that the stage of the rows takes; none: it has no limit."""
    apart_from: tuple[HeldOutUse, ...] = ()
    """Datasets whose prompts, or words, are left out of these rows; none: nothing is left out for that."""


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


class Lengths(Contract):
    """How long the texts of rows are: of each prompt with the longest reply to it, in characters."""

    median: int
    """Half of the rows have at most so many."""
    p99: int
    """99 of 100 rows have at most so many."""
    longest: int
    """Of the row with the most."""


class RenderedExample(Contract):
    """A row as the model's chat template writes it and its tokenizer cuts it."""

    context: str
    """The text that the model is given: it carries no loss."""
    trained: str
    """The text that it learns; empty for prompts."""
    tokens: int
    """Number of tokens of both."""
    trained_tokens: int
    """Number of tokens that carry loss."""
    eos_trained: bool | None
    """Whether the end-of-sequence token is among them; none: nothing is trained on."""
    bos_doubled: bool
    """Whether the text begins with two tokens that begin a sequence."""
    generation_prompt: bool
    """Whether a reply is asked for in the way in which replies begin in training."""
    tools_shown: bool | None
    """Whether the tools that the row offers or calls are in the text; none: it has none."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with it."""
        told = {
            "the end of a reply is not trained on: the model will not know when to stop": self.eos_trained is False,
            "the text begins with two tokens that begin a sequence": self.bos_doubled,
            "replies do not begin as the generation prompt has them begin": not self.generation_prompt,
            "tools are not in the text": self.tools_shown is False,
        }
        return tuple(text for text, is_so in told.items() if is_so)


class PartCount(Contract):
    """One part of a mixture."""

    source: str
    """The part's path or hub id."""
    revision: str | None = None
    """Commit of a hub dataset."""
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
    example: RenderedExample | None = None
    """The first row as the model sees it; none: the base model was not there."""


class RoleReport(Contract):
    """What a file would be for one role."""

    role: Literal["sft", "preference", "prompts"]
    """What the rows are for."""
    refused: str = ""
    """Why it cannot serve, one problem a line; the rest is empty then."""
    found: Prepared | None = None
    """Rows, problems and tokens."""
    characters: Lengths | None = None
    """How long the texts of the rows are."""
    example: RenderedExample | None = None
    """The first row as the named model sees it."""


class DataReport(Contract):
    """What `align data` says of a file."""

    path: str
    """The file, folder or hub id."""
    roles: tuple[RoleReport, ...]
    """What it is for each role."""

    @property
    def serves(self) -> bool:
        """Whether there is a role for it."""
        return any(role.found for role in self.roles)
