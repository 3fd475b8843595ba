"""The record of a run: what was asked for, what each stage made of it, and where it stands."""

from pathlib import Path
from typing import Literal

from models.alarms import Alarm
from models.artifacts import Checkpoint, Stage
from models.comparison import Comparison
from models.contract import Contract
from models.evaluation import EvaluationResult
from models.gate import GateResult
from models.recipe import Recipe

RunState = Literal["running", "completed", "failed", "cancelled", "crashed"]


class StageOutcome(Contract):
    """How one stage of a run ended."""

    stage: Stage
    """The stage."""
    checkpoint: Checkpoint
    """What it made or found."""
    cached: bool
    """Whether the checkpoint was there already."""
    seconds: float
    """Wall time spent on the stage in this run."""
    alarms: tuple[Alarm, ...] = ()
    """What its training raised, in this run or in the one that made it."""


class RunRecord(Contract):
    """`runs/<id>/run.json`."""

    id: str
    """Name of the run's folder: UTC time and a random part."""
    state: RunState
    """Where the run stands."""
    recipe: Recipe
    """The recipe with all defaults filled in."""
    recipe_name: str
    """The recipe's file name without its ending, or `recipe`."""
    started: str
    """UTC time, ISO 8601."""
    finished: str | None = None
    """UTC time, ISO 8601."""
    force: tuple[Stage, ...] = ()
    """Stages to train although an earlier run has made them."""
    needs: tuple[str, ...] = ()
    """Names of the folders that the run takes or makes, which it had before it took or made the first."""
    error: str = ""
    """Message of the error that ended the run."""
    stages: tuple[StageOutcome, ...] = ()
    """The stages in the order of the pipeline, once the run has completed."""
    evaluations: tuple[EvaluationResult, ...] = ()
    """Figures of the base model and of every stage."""
    comparisons: tuple[Comparison, ...] = ()
    """Every policy held against its parent and the base model, and the last one against the gate's aliases."""
    gate: GateResult | None = None
    """Whether the last policy may be promoted; none: the recipe has no gate."""
    report: Path | None = None
    """The HTML report."""

    @property
    def policies(self) -> list[Checkpoint]:
        """The base model and what each stage made of it, the last one last; none before the run has completed."""
        return [outcome.checkpoint for outcome in self.stages if outcome.stage != "reward"]
