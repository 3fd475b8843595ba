"""What people see of lineage in the terminal: the tree of a folder, and what differs between two checkpoints."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from flows.terminal import print_table
from models.lineage import Difference, HeldOutFigure, LineageGraph, LineageNode
from tasks.lineage import edges
from tasks.lineage_text import title

_LENGTH_OF_A_DIGEST = 64
_MOST_SHOWN = 200
"""Folders in a tree; more than that is a matter for `--json`."""


def print_lineage(graph: LineageGraph, console: Console) -> None:
    """The folder as a tree, below it what it was made from or what was made from it; each folder is opened once."""
    next_to = defaultdict(list)
    for child, role, parent in edges(graph):
        here, there = (child, parent) if graph.direction == "ancestors" else (parent, child)
        next_to[here].append((role, there))
    tree = Tree(_label(graph.nodes[graph.root], ""))
    opened = {graph.root: tree}
    waiting = [graph.root]
    for here in waiting:
        for role, there in next_to[here]:
            if there in opened:
                opened[here].add(f"{_role(role)}[bold]{_name(graph.nodes[there])}[/] [dim]see above[/]")
            elif len(opened) < _MOST_SHOWN:
                opened[there] = opened[here].add(_label(graph.nodes[there], role))
                waiting.append(there)
    console.print(tree)
    if graph.direction == "descendants":
        console.print(_counted(graph), markup=False, highlight=False)
    if len(opened) < len(graph.nodes):
        left = len(graph.nodes) - len(opened)
        console.print(f"and {left} more; --json lists all of them", markup=False, highlight=False)


def print_difference(found: Difference, console: Console) -> None:
    """Every section in which two checkpoints differ, the figures on shared held-out rows last."""
    console.print(f"[bold]{escape(found.a)}[/] and [bold]{escape(found.b)}[/]")
    same = [name for name, changes in found.sections.items() if not changes]
    for name, changes in found.sections.items():
        if changes:
            rows = [(change.key, *_values(change.a, change.b)) for change in changes]
            print_table((name, "first", "second", "difference"), rows, console)
    if found.held_out:
        rows = [_held_out(figure) for figure in found.held_out]
        print_table(("held-out figure", "first", "second", "difference"), rows, console)
    if same:
        console.print(f"no difference in {', '.join(same)}", markup=False, highlight=False)


def _label(node: LineageNode, role: str) -> str:
    state = "" if node.state == "there" else f" [red]{_STATES[node.state]}[/]"
    told = ", ".join(_source(node)) if node.kind in ("base", "dataset") else ""
    when = f" {node.created[:16]}" if node.created else ""
    return f"{_role(role)}[bold]{_name(node)}[/]{when}{state} [dim]{escape(told)}[/]"


def _name(node: LineageNode) -> str:
    """As commands take it; a base model's own says nothing of what it is, where its role is another model's policy."""
    return escape(f"base-{node.name}" if node.kind == "base" else node.name)


_STATES = {
    "pruned": "pruned, its manifest stays",
    "damaged": "its manifest cannot be read",
    "missing": "not in this artifact root",
}


def _source(node: LineageNode) -> Iterator[str]:
    """Where the content came from; digests of files are for `--json`."""
    for key, value in node.origin.items():
        if isinstance(value, str | int | float) and len(str(value)) < _LENGTH_OF_A_DIGEST:
            yield f"{key} {value}"


def _role(role: str) -> str:
    return f"[dim]{escape(role)}[/] " if role else ""


def _counted(graph: LineageGraph) -> str:
    """How many of which kind were made from the root."""
    counts = Counter(title(node) for node in graph.nodes.values() if node.name != graph.root)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"made from {graph.root}: {told or 'nothing'}"


def _values(a: Any, b: Any) -> tuple[str, str, str]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return _cell(a), _cell(b), f"{b - a:+.6g}" if numbers else ""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _held_out(figure: HeldOutFigure) -> tuple[str, str, str, str]:
    return figure.name, str(figure.a), str(figure.b), f"{figure.b.value - figure.a.value:+.2f}"
