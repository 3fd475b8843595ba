"""Lineage in the languages of graph tools: Graphviz's DOT and Mermaid."""

from models.lineage import LineageGraph, LineageNode
from tasks.lineage import edges

_SHAPES = {"base": ("box3d", "[[{}]]"), "dataset": ("cylinder", "[({})]"), "evaluation": ("note", "[/{}/]")}
_PLAIN = ("box", "[{}]")
_NEW_LINE = r"\n"  # as DOT writes it


def to_dot(graph: LineageGraph) -> str:
    """The graph for Graphviz; arrows go from parents to what was made from them."""
    nodes = [
        f"  {_quoted(node.name)} [label={_quoted(_label(node, _NEW_LINE))}, shape={_shapes(node)[0]}"
        f"{'' if node.state == 'there' else ', style=dashed'}];"
        for node in graph.nodes.values()
    ]
    arrows = [
        f"  {_quoted(parent)} -> {_quoted(child)} [label={_quoted(role)}];" for child, role, parent in edges(graph)
    ]
    return "\n".join(["digraph lineage {", "  rankdir=LR;", *nodes, *arrows, "}"])


def to_mermaid(graph: LineageGraph) -> str:
    """The graph as a Mermaid flow chart; arrows go from parents to what was made from them."""
    ids = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    nodes = [
        f"  {ids[node.name]}{_shapes(node)[1].format(_quoted(_label(node, '<br>')))}" for node in graph.nodes.values()
    ]
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


def _label(node: LineageNode, end_of_line: str) -> str:
    state = [] if node.state == "there" else [node.state]
    return end_of_line.join([title(node), node.name, *state])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
