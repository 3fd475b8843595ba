"""Lineage to look at: a drawing of the graph, and a page where every node of it opens its card."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from models.artifacts import Ancestor, Attempt, Manifest
from models.lineage import LineageGraph, LineageNode
from tasks.differing import flattened
from tasks.lineage import edges
from tasks.lineage_text import title
from tasks.reporting.page import environment
from tasks.store import ArtifactStore, readable_manifest

_MOST_DRAWN = 200
"""Nodes of one drawing, the nearest ones; more would be a wall, not a picture."""
_TOLD_ELSEWHERE = ("origin", "versions", "stage")
"""Parts of an identity."""
_WIDTH, _HEIGHT = 224, 60
_ACROSS, _DOWN = 296, 92
"""From one node to the next, in the drawing's own units."""


@dataclass(frozen=True)
class Box:
    """A node of the drawing."""

    node: LineageNode
    title: str
    """What it is, in a few words."""
    x: float
    y: float
    """Its upper left corner."""


@dataclass(frozen=True)
class Drawing:
    """A graph with a place for everything; sources on the left, what was made from them on the right."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[str, str], ...]
    """Role and SVG path data of each."""
    width: float
    height: float
    box_width: int = _WIDTH
    box_height: int = _HEIGHT


def render_lineage(store: ArtifactStore, graph: LineageGraph) -> str:
    """Write the graph as one self-contained HTML file."""
    drawn = _nearest(graph)
    places = {name: place for name in drawn.nodes if (place := store.locate(name))}
    manifests = {name: manifest for name, place in places.items() if (manifest := readable_manifest(place))}
    told = {name: said for manifest in manifests.values() for name, said in manifest.ancestors.items()} | manifests
    cards = {name: _card(node, told.get(name)) for name, node in drawn.nodes.items()}
    template = environment().get_template("lineage.html.j2")
    return template.render(graph=graph, drawing=lay_out(drawn), cards=cards, left_out=len(graph.nodes) - len(cards))


def render_drawing(graph: LineageGraph) -> str:
    """The drawing alone, as an SVG image."""
    return environment().get_template("lineage.svg.j2").render(drawing=lay_out(_nearest(graph)), links=False)


def lay_out(graph: LineageGraph) -> Drawing:
    """Give each node a column by its longest way to the root, and a row near what it is connected to."""
    places: dict[str, tuple[float, float]] = {}
    columns = _columns(graph)
    for number, names in enumerate(columns):
        names.sort(key=lambda name: _mean_row(graph, name, places))
        column = len(columns) - 1 - number if graph.direction == "ancestors" else number
        top = (max(map(len, columns)) - len(names)) / 2
        places |= {name: (column * _ACROSS, (top + row) * _DOWN) for row, name in enumerate(names)}
    return Drawing(
        boxes=tuple(Box(graph.nodes[name], title(graph.nodes[name]), *place) for name, place in places.items()),
        arrows=tuple((role, _curve(places[parent], places[child])) for child, role, parent in edges(graph)),
        width=max(x for x, _ in places.values()) + _WIDTH,
        height=max(y for _, y in places.values()) + _HEIGHT,
    )


def _columns(graph: LineageGraph) -> list[list[str]]:
    """The names of the nodes by the length of their longest way to the root."""
    ranks = dict.fromkeys(graph.nodes, 0)
    outward = [
        (child, parent) if graph.direction == "ancestors" else (parent, child) for child, _, parent in edges(graph)
    ]
    for _ in graph.nodes:  # as often as the longest way can be
        raised = {there: ranks[here] + 1 for here, there in outward if ranks[there] <= ranks[here]}
        if not raised:
            break
        ranks |= raised
    columns = defaultdict(list)
    for name, rank in ranks.items():
        columns[rank].append(name)
    return [columns[rank] for rank in sorted(columns)]


def _mean_row(graph: LineageGraph, name: str, places: dict[str, tuple[float, float]]) -> float:
    near = [child for child, _, parent in edges(graph) if parent == name] + list(graph.nodes[name].parents.values())
    rows = [places[other][1] for other in near if other in places]
    return sum(rows) / len(rows) if rows else 0.0


def _curve(parent: tuple[float, float], child: tuple[float, float]) -> str:
    x1, y1, x2, y2 = parent[0] + _WIDTH, parent[1] + _HEIGHT / 2, child[0] - 3, child[1] + _HEIGHT / 2
    bend = (_ACROSS - _WIDTH) * 0.7
    return f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"


def _nearest(graph: LineageGraph) -> LineageGraph:
    names = list(graph.nodes)[:_MOST_DRAWN]
    return graph.model_copy(update={"nodes": {name: graph.nodes[name] for name in names}})


def _card(node: LineageNode, known: Manifest | Ancestor | None) -> dict[str, dict[str, Any]]:
    """Everything that is known of a node, by its manifest or those of its descendants: sections of facts by name."""
    said = {"fingerprint": node.fingerprint, "created": node.created, "run": node.run, "state": node.state}
    sections = {
        "": {key: value for key, value in said.items() if value},
        "Made from": dict(node.parents),
        "Where it came from": dict(flattened(node.origin)),
    }
    if known:
        asked = {key: value for key, value in known.identity.items() if key not in _TOLD_ELSEWHERE}
        sections["What was asked for"] = dict(flattened(asked.pop("hyperparameters", {}) | asked))
    if isinstance(known, Manifest):
        sections |= {
            "Figures": {name: f"{value:.6g}" for name, value in known.metrics.items()},
            "Attempts": {f"{number}": _attempt(each) for number, each in enumerate(known.attempts, 1)},
            "Code and versions": known.code | known.versions,
            "Machine": dict(known.machine),
            "Files": {entry.path: f"{entry.sha256}, {entry.size_bytes} bytes" for entry in known.files},
        }
    told = {name: {key: value for key, value in facts.items() if value is not None} for name, facts in sections.items()}
    return {name: facts for name, facts in told.items() if facts}


def _attempt(each: Attempt) -> str:
    energy = "" if each.energy_joules is None else f", {each.energy_joules:.0f} J"
    cause = f" ({each.cause})" if each.cause else ""
    return (
        f"{each.outcome}{cause}: micro-batch {each.per_device_train_batch_size} x {each.gradient_accumulation_steps}, "
        f"steps {each.resumed_from_step} to {each.reached_step}, {each.seconds:.1f} s, "
        f"{each.peak_memory_bytes / 1e9:.2f} GB{energy}"
    )
