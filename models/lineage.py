"""Lineage as data: what a folder was made from, or what was made from it, as one flat graph."""

from typing import Any, Literal

from models.artifacts import Kind
from models.contract import Contract
from models.evaluation import Estimate

Direction = Literal["ancestors", "descendants"]
FolderState = Literal["there", "pruned", "damaged", "missing"]


class LineageNode(Contract):
    """One folder of the graph."""

    name: str
    """Name of the folder."""
    state: FolderState
    """Whether it is there; `pruned`: its manifest is, `damaged`: its manifest cannot be read, `missing`: it is gone."""
    kind: Kind | None = None
    """What it holds; none: it is gone and nobody tells of it."""
    stage: str = ""
    """The stage that made it; empty for a dataset."""
    fingerprint: str = ""
    """All 64 digits; empty where the kind is unknown."""
    created: str = ""
    """UTC time, ISO 8601."""
    run: str = ""
    """Name of the run that made it; empty where the folder is gone."""
    parents: dict[str, str] = {}
    """Names of the folders that it was made from, by role: the edges of the graph."""
    origin: dict[str, Any] = {}
    """Where its content came from."""
    metrics: dict[str, float] = {}
    """Figures measured while making it; none where the folder is gone."""


class LineageGraph(Contract):
    """A folder with all its ancestors or all its descendants."""

    root: str
    """Name of the folder asked for."""
    direction: Direction
    """Which way the graph goes from there."""
    nodes: dict[str, LineageNode]
    """Every folder by name: the root first, then the nearest first."""


class Change(Contract):
    """A value that is not the same in two checkpoints."""

    key: str
    """Its name, nested ones with dots: `dpo.hyperparameters.beta`."""
    a: Any
    """In the first checkpoint; none: it is not there."""
    b: Any
    """In the second."""


class HeldOutFigure(Contract):
    """A figure that both checkpoints were measured by on the same held-out rows."""

    name: str
    """Name of the figure, those of one kind of row as `exact_match/<kind>`."""
    a: Estimate
    """Of the first checkpoint."""
    b: Estimate
    """Of the second."""


class Difference(Contract):
    """What differs between two checkpoints."""

    a: str
    """Name of the first checkpoint."""
    b: str
    """Name of the second."""
    sections: dict[str, tuple[Change, ...]]
    """Differences in `recipe`, `data`, `parents`, `code`, `versions`, `machine`, `attempts` and `metrics`."""
    held_out: tuple[HeldOutFigure, ...]
    """Figures on the same held-out rows; none where no rows are shared."""

    @property
    def same(self) -> bool:
        """Whether the same thing was asked for: recipe, data and parents agree."""
        return not any(self.sections[name] for name in ("recipe", "data", "parents"))
