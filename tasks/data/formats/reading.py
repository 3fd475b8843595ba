"""What formats are made of: the first rows of a source, and how rows, or parts of them, are read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from models.sources import FormatName
from tasks.data.problems import problem
from tasks.data.readers import Row, shown_names

Role = Literal["sft", "preference", "prompts"]
"""What rows are for: supervised fine-tuning; reward modelling and DPO; GRPO and evaluation."""

PROMPT_KEYS = ("prompt", "answer", "kind")
"""Keys of the normal form of prompts, which no further column may take the place of."""


@dataclass(frozen=True)
class Paired:
    """Rows made from several rows of a table."""

    rows: list[Row]
    """Pairs in normal form."""
    left_out: int
    """Rows of the table that are in no pair."""


@dataclass(frozen=True)
class Reading:
    """How rows, or a part of them, are read. It can be sent to another process."""

    words: str
    """What is read from which columns, for people."""
    columns: tuple[str, ...]
    """The columns that it reads."""
    read: Callable[[Row], Any]
    """The part of the normal form that a row holds; raises RowProblem."""
    format: FormatName | None = None
    """The format that it belongs to; none: that of the part that it is joined with."""
    native: int = 0
    """Parts of it that lie in columns of the normal form's own names; the readings with most come first."""
    choice: str = ""
    """What to write into the recipe to have it."""
    combine: Callable[[Sequence[Row]], Paired] | None = None
    """Makes pairs of what was read of all rows, where a pair's sides lie in several."""


@dataclass(frozen=True)
class Sample:
    """The first rows of a source, with the recipe's columns under the names that it gives them."""

    rows: tuple[Row, ...]
    mapped: frozenset[str] = frozenset()
    """Columns that the recipe names."""
    counts_empty: bool = False
    """Whether a column counts as there although no row has a value in it."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the order in which they occur."""
        named = ((name, value) for row in self.rows for name, value in row.items())
        return tuple(dict.fromkeys(name for name, value in named if self.counts_empty or filled(value)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, be they empty."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def has(self, *names: str) -> bool:
        """Whether all these columns are there."""
        return all(name in self.columns for name in names)

    def among(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are there."""
        return [name for name in names if name in self.columns]

    def one_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The first of `names` that is there, then those without a value so far: a later row may have one."""
        there = self.among(names)
        return (*there[:1], *(name for name in names if name not in there))

    def told(self, names: Iterable[str]) -> str | None:
        """The first of `names` that is a column, be it empty."""
        return next((name for name in names if name in self.names), None)

    def together(self, *names: str) -> bool:
        """Whether one row has a value in each of these columns."""
        return any(all(filled(row.get(name)) for name in names) for row in self.rows)

    def is_native(self, name: str) -> bool:
        """Whether the source itself has a column of this name, rather than the recipe having named one."""
        return self.has(name) and name not in self.mapped

    def values(self, name: str) -> list[Any]:
        """The values of a column, where rows have one."""
        return [row[name] for row in self.rows if filled(row.get(name))]

    def first(self, name: str) -> Any:
        """The first value of a column; None where it has none."""
        return next(iter(self.values(name)), None)


def filled(value: object) -> bool:
    """Whether there is something in a cell."""
    return value is not None and value not in ("", [], {})


def first_filled(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns in which the row has something."""
    return next((name for name in names if filled(row.get(name))), None)


def require(row: Row, columns: Iterable[str], rule: str) -> None:
    """Raise RowProblem for the first of these columns that the row does not have."""
    for column in columns:
        if column not in row:
            near = get_close_matches(column, list(row), n=1)
            remedy = f"did you mean '{near[0]}'? rename it to '{column}'" if near else "rename or add columns"
            seen = f"it is missing; columns found: {shown_names(list(row)) or 'none'}"
            raise problem(column, seen, rule, remedy, "missing")
