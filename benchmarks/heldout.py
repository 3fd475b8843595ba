"""Whether both sides of a benchmark have learned the same: their checkpoints on the recipe's held-out rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State

from models.artifacts import Checkpoint, Dataset, Stage
from models.evaluation import Estimate
from models.recipe import Recipe
from models.stages import EvaluationInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.plan import EvaluationPlan
from tasks.data.checking import cleaning_of
from tasks.dataset import prepare_dataset
from tasks.evaluate import held_out
from tasks.execution import Execution

FIGURES = ("exact_match", "preference_accuracy", "loss", "reward_score")


def held_out_rows(recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """What to measure on which rows: greedy replies and pairs."""

    def rows(source: Any, role: Any, rules: Any = ()) -> State[Dataset]:
        asked = (source, role, recipe.system_prompt, execution, rules, cleaning_of(recipe))
        return prepare_dataset(*asked, return_state=True)

    greedy = recipe.evaluation.model_copy(update={"num_samples": 0})
    return held_out(recipe.model_copy(update={"evaluation": greedy}), rows)


def measure(
    models: Mapping[Stage, Path], scorer: Path, heldout: dict[str, Any], execution: Execution, folder: Path
) -> dict[str, Estimate]:
    """The figures of checkpoints, by stage and name.

    Args:
        models: The checkpoints' folders.
        scorer: A reward model, the same for all sides, that scores the policies' replies.
        heldout: Of `held_out_rows`.
        execution: Its threads and precision.
        folder: Where results are written.
    """

    def checkpoint(stage: Stage, path: Path) -> Checkpoint:
        return Checkpoint(path=path, fingerprint="0" * 64, stage=stage, precision=execution.precision)

    found: dict[str, Estimate] = {}
    for stage, path in models.items():
        scored = {"reward_model": checkpoint("reward", scorer)} if stage != "reward" else {}
        asked = EvaluationInput(checkpoint=checkpoint(stage, path), **scored, **heldout)
        call, options = (asked, EvaluationPlan(device="cpu"), folder / stage), ChildOptions(threads=execution.threads)
        result = run_in_child(entry.evaluate, call, options, lambda report: None, lambda line: None)
        figures = {f"{stage}: {name.replace('_', ' ')}": getattr(result, name) for name in FIGURES}
        found |= {name: figure for name, figure in figures.items() if figure}
    return found


def apart(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> list[str]:
    """The figures whose intervals do not touch, with both values."""
    return [
        f"{name}: {mine} against {theirs[name]}"
        for name, mine in ours.items()
        if mine.high < theirs[name].low or mine.low > theirs[name].high
    ]
