"""What people see of the aliases and of the space that an artifact root takes."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from models.aliases import Alias, Promotion
from models.pruning import PrunePlan

_MOST_REASONS = 12


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


def print_plan(plan: PrunePlan, done: bool, console: Console) -> None:
    """Bytes by what folders hold, what goes, and why the rest stays."""
    kinds = dict.fromkeys(item.what for item in plan.items)
    table = Table("holds", "folders", "there", "goes" if not done else "went", "stays")
    for kind in kinds:
        items = [item for item in plan.items if item.what == kind]
        there, goes = sum(item.size_bytes for item in items), sum(item.frees_bytes for item in items)
        table.add_row(kind, str(len(items)), _megabytes(there), _megabytes(goes), _megabytes(there - goes))
    console.print(table)
    for item in plan.items:
        if item.action != "keep":
            line = f"{item.action}: {item.what} {item.path.name}, {_megabytes(item.frees_bytes)} ({item.why})"
            console.print(line, markup=False, highlight=False)
    reasons = Counter(item.why for item in plan.items if item.action == "keep")
    for why, count in reasons.most_common(_MOST_REASONS):
        console.print(f"kept: {count}, {why}", markup=False, highlight=False)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
