"""The pipeline as a picture: where the nodes stand and which way the arrows run; the template draws it as SVG."""

from dataclasses import dataclass
from typing import Literal

from models.artifacts import Stage
from models.recipe import Recipe
from models.run import RunRecord
from tasks.reporting.verdict import key_figure
from tasks.reporting.words import STAGE_NAMES, duration, parent_of, stages_of

NodeState = Literal["trained", "cached", "not run", "starting point"]

MARKS: dict[NodeState, str] = {"trained": "●", "cached": "◐", "not run": "○", "starting point": "●"}


@dataclass(frozen=True)
class Shape:
    """Sizes of one drawing, in its own units."""

    width: int
    """Width of a node."""
    height: int
    """Height of a node."""
    gap_along: int
    """Space between nodes in the direction of the pipeline."""
    gap_across: int
    """Space between the reward model and DPO."""
    vertical: bool
    """Whether the pipeline runs downwards (phones) or to the right."""


WIDE = Shape(width=212, height=96, gap_along=68, gap_across=30, vertical=False)
TALL = Shape(width=166, height=126, gap_along=46, gap_across=16, vertical=True)


@dataclass(frozen=True)
class Node:
    """One stage of the picture."""

    stage: Stage
    name: str
    state: NodeState
    mark: str
    seconds: str
    """Time spent on it in this run, in words; empty where it did not run."""
    measure: str
    """What its most telling figure measures; empty where it was not evaluated."""
    value: str
    """That figure."""
    x: float
    y: float
    """Its upper left corner."""


@dataclass(frozen=True)
class Edge:
    """An arrow along which a policy or a reward model is handed over."""

    role: Literal["policy", "reward"]
    path: str
    """SVG path data."""
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Picture:
    """A laid-out pipeline."""

    id: str
    shape: Shape
    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def pictures(record: RunRecord) -> tuple[Picture, Picture]:
    """The pipeline laid out for a wide page and for a phone."""
    return _lay_out(record, WIDE, "wide"), _lay_out(record, TALL, "tall")


def stage_state(record: RunRecord, stage: Stage) -> NodeState:
    """What became of a stage in this run."""
    outcome = next((outcome for outcome in record.stages if outcome.stage == stage), None)
    if outcome is None or stage == "base":
        return "starting point" if stage == "base" else "not run"
    return "cached" if outcome.cached else "trained"


def stage_seconds(record: RunRecord, stage: Stage) -> str:
    """Time spent on a stage in this run, in words; empty where there is none."""
    seconds = next((outcome.seconds for outcome in record.stages if outcome.stage == stage), 0.0)
    return duration(seconds) if seconds else ""


def _lay_out(record: RunRecord, shape: Shape, id: str) -> Picture:
    places = _places(record.recipe)
    corners = {stage: _corner(place, shape) for stage, place in places.items()}
    return Picture(
        id=id,
        shape=shape,
        width=max(x for x, _ in corners.values()) + shape.width,
        height=max(y for _, y in corners.values()) + shape.height,
        nodes=tuple(_node(record, stage, *corner) for stage, corner in corners.items()),
        edges=tuple(_edge(role, corners[a], corners[b], shape) for role, a, b in _hand_overs(record.recipe)),
    )


def _places(recipe: Recipe) -> dict[Stage, tuple[float, float]]:
    """Rank along the pipeline and lane across it; the reward model and DPO share a rank."""
    stages = stages_of(recipe)
    parallel = "reward" in stages and ("dpo" in stages or "grpo" in stages)
    main = 0.5 if parallel and "dpo" in stages else 0.0
    ranks = {"base": 0, "sft": 1, "reward": 2, "dpo": 2, "grpo": 3 if {"reward", "dpo"} & set(stages) else 2}
    lanes = {"reward": 1.0 if parallel else 0.0, "dpo": 0.0}
    return {stage: (ranks[stage], lanes.get(stage, main)) for stage in stages}


def _corner(place: tuple[float, float], shape: Shape) -> tuple[float, float]:
    rank, lane = place
    if shape.vertical:
        return lane * (shape.width + shape.gap_across), rank * (shape.height + shape.gap_along)
    return rank * (shape.width + shape.gap_along), lane * (shape.height + shape.gap_across)


def _hand_overs(recipe: Recipe) -> list[tuple[Literal["policy", "reward"], Stage, Stage]]:
    policies = [stage for stage in stages_of(recipe) if stage != "base"]
    arrows: list[tuple[Literal["policy", "reward"], Stage, Stage]] = []
    arrows += [("policy", parent_of(recipe, stage), stage) for stage in policies]
    if recipe.grpo and recipe.grpo.wants_own_reward_model:
        arrows.append(("reward", "reward", "grpo"))
    return arrows


def _node(record: RunRecord, stage: Stage, x: float, y: float) -> Node:
    state = stage_state(record, stage)
    seconds = stage_seconds(record, stage)
    return Node(stage, STAGE_NAMES[stage], state, MARKS[state], seconds, *key_figure(record, stage), x, y)


def _edge(
    role: Literal["policy", "reward"], start: tuple[float, float], end: tuple[float, float], shape: Shape
) -> Edge:
    """An S-curve from the far side of one node to the near side of the next."""
    if shape.vertical:
        x1, y1 = start[0] + shape.width / 2, start[1] + shape.height
        x2, y2 = end[0] + shape.width / 2, end[1] - 3
        bend = shape.gap_along * 0.6
        path = f"M{x1:g} {y1:g} C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
    else:
        x1, y1 = start[0] + shape.width, start[1] + shape.height / 2
        x2, y2 = end[0] - 3, end[1] + shape.height / 2
        bend = shape.gap_along * 0.6
        path = f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    above = 0 if shape.vertical or y1 != y2 else 13
    return Edge(role, path, (x1 + x2) / 2, (y1 + y2) / 2 - above)
