"""What people see of the aliases and of the space that an artifact root takes."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from models.aliases import Alias, Promotion


def print_aliases(found: Sequence[Alias], console: Console) -> None:
    """Each alias with what it was pointed to, newest first."""
    if not found:
        console.print("no aliases yet; `align promote CHECKPOINT` makes the first", markup=False)
        return
    headings = ("alias", "points to", "since", "by", "reason", "through")
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for alias in found:
        for number, entry in enumerate(reversed(alias.history)):
            points_to = entry.checkpoint if number == 0 else f"before: {entry.checkpoint}"
            cells = (alias.name * (number == 0), points_to, entry.when[:16], entry.by, entry.reason, _through(entry))
            table.add_row(*map(escape, cells))
    console.print(table)


def _through(entry: Promotion) -> str:
    return entry.command or f"flow run {entry.flow_run}"
