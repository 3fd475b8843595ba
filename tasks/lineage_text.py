"""Lineage in the languages of graph tools: Graphviz's DOT and Mermaid."""

from models.lineage import LineageGraph, LineageNode
from tasks.lineage import edges

_SHAPES = {"base": ("box3d", "[[{}]]"), "dataset": ("cylinder", "[({})]"), "evaluation": ("note", "[/{}/]")}
_PLAIN = ("box", "[{}]")
_MARKUP = '"#&<>`*_\\'
"""What Mermaid, and the Markdown and HTML in it, would not show as it is."""


def to_dot(graph: LineageGraph) -> str:
    """The graph for Graphviz; arrows go from parents to what was made from them."""
    nodes = [
        f"  {_dot(node.name)} [label={_dot(*_lines(node))}, shape={_shapes(node)[0]}"
        f"{'' if node.state == 'there' else ', style=dashed'}];"
        for node in graph.nodes.values()
    ]
    arrows = [f"  {_dot(parent)} -> {_dot(child)} [label={_dot(role)}];" for child, role, parent in edges(graph)]
    return "\n".join(["digraph lineage {", "  rankdir=LR;", *nodes, *arrows, "}"])


def to_mermaid(graph: LineageGraph) -> str:
    """The graph as a Mermaid flow chart; arrows go from parents to what was made from them."""
    ids = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    nodes = [f"  {ids[node.name]}{_shapes(node)[1].format(_mermaid(*_lines(node)))}" for node in graph.nodes.values()]
    arrows = [f"  {ids[parent]} -- {role} --> {ids[child]}" for child, role, parent in edges(graph)]
    gone = [f"  style {ids[node.name]} stroke-dasharray: 5 5" for node in graph.nodes.values() if node.state != "there"]
    return "\n".join(["flowchart LR", *nodes, *arrows, *gone])


def title(node: LineageNode) -> str:
    """What a folder is, in a word or two of its own: the base model's or dataset's name, else its stage."""
    own = str(node.origin.get("path") or node.origin.get("name") or "")
    if node.kind == "checkpoint" or not own:
        return node.stage or node.kind or "unknown"
    return f"{node.kind}: {own}"


def _shapes(node: LineageNode) -> tuple[str, str]:
    return _SHAPES.get(node.kind or "", _PLAIN)


def _lines(node: LineageNode) -> list[str]:
    """What a node's label says, line by line; a line break in a file's name is no line break of a label."""
    state = [] if node.state == "there" else [node.state]
    return [" ".join(line.splitlines()) for line in (title(node), node.name, *state)]


def _dot(*lines: str) -> str:
    """Text in quotes in which a backslash and a quote stand for themselves."""
    return '"' + r"\n".join(line.replace("\\", r"\\").replace('"', r"\"") for line in lines) + '"'


def _mermaid(*lines: str) -> str:
    """Text in quotes in which nothing is markup: Mermaid knows `#` and a character's number."""
    plain = ("".join(f"#{ord(each)};" if each in _MARKUP else each for each in line) for line in lines)
    return '"' + "<br>".join(plain) + '"'
