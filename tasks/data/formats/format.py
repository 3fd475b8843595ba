"""A recognised format: its name, what was recognised, and how a row comes to its normal form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.sources import FormatName
from tasks.core.columns import plain
from tasks.data.formats.mapping import Mapping, mapped
from tasks.data.formats.reading import PROMPT_KEYS, Paired, Role
from tasks.data.formats.tables import label_of
from tasks.data.problems import text
from tasks.data.readers import Row
from tasks.data.tools import tools_text


@dataclass(frozen=True)
class Format:
    """How the rows of a source are read. It can be sent to another process."""

    key: FormatName
    """Its name in a recipe."""
    name: str
    """Its name for people."""
    sentence: str
    """What was recognised, how it is read, and what is left out."""
    role: Role
    """What the rows are for."""
    mapping: Mapping
    """The recipe's names of columns."""
    read: Callable[[Row], Row]
    """Reads a mapped row."""
    columns: frozenset[str]
    """The columns that are read."""
    combine: Callable[[Sequence[Row]], Paired] | None = None
    """Makes pairs of all converted rows, where a pair's sides lie in several; most formats need none."""

    def split(self, row: Row) -> list[Row]:
        """The rows that a row stands for: one for each instance of a self-instruct task, else the row itself."""
        instances = row.get("instances") if self.key == "self_instruct" else None
        if not isinstance(instances, list) or len(instances) < 2:
            return [row]
        return [row | {"instances": [instance]} for instance in instances]

    def convert(self, row: Row) -> Row:
        """The normal form of a row; where `combine` is there, what it takes.

        Raises:
            RowProblem: the row does not fit; it says which rule it breaks.
        """
        row = mapped(row, self.mapping)
        normal = self.read(row) | {"kind": _kind(row)}
        if self.role == "prompts":
            return normal | self._extra(row)
        tools = tools_text(row["tools"], "tools") if row.get("tools") else None
        normal |= {"tools": tools} if tools else {}
        return normal | {"label": label_of(row)} if self.key == "unpaired" else normal

    def _extra(self, row: Row) -> Row:
        """The further columns of a row of prompts, for rewards and verifiers."""
        read = self.columns.union(PROMPT_KEYS)
        further: Row = plain({name: value for name, value in row.items() if name not in read})
        extra = {name: value for name, value in further.items() if value is not None}
        return {"extra": extra} if extra else {}


def _kind(row: Row) -> str:
    value = row.get("kind")
    return text(value, "kind", "kind is a text") if value not in (None, "") else "all"
