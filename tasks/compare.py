"""Comparisons as a Prefect task: every policy against its parent and the base model, the last one against aliases."""

from collections.abc import Iterator, Mapping, Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from models.artifacts import Stage
from models.comparison import Comparison
from models.evaluation import EvaluationResult
from models.recipe import Recipe
from tasks.comparing import compare
from tasks.execution import Execution
from tasks.judge import judged_win_rate
from tasks.telling import publish


@task(name="compare", cache_policy=NO_CACHE)
def compare_models(
    evaluations: Sequence[EvaluationResult],
    rivals: Mapping[str, EvaluationResult],
    recipe: Recipe,
    execution: Execution,
) -> tuple[Comparison, ...]:
    """Hold the run's policies against what they came from, and the last one against the gate's aliases.

    Args:
        evaluations: Of the run's models in the order of the pipeline, the base model first.
        rivals: Of the checkpoints that aliases point to, by alias.
        recipe: Says which stage starts from which, and names the judge.
        execution: The machine's part.
    """
    found = []
    for after, before, role in _matches(evaluations, rivals, recipe):
        comparison = compare(after, before, role)
        if recipe.evaluation.judge:
            rate, failures = judged_win_rate(
                recipe.evaluation.judge,
                after.samples,
                before.samples,
                execution.settings,
                get_run_logger().warning,
            )
            comparison = comparison.model_copy(update={"judged_win_rate": rate, "judge_failures": failures})
        found.append(comparison)
    show_comparisons(found)
    return tuple(found)


def _matches(
    evaluations: Sequence[EvaluationResult], rivals: Mapping[str, EvaluationResult], recipe: Recipe
) -> Iterator[tuple[EvaluationResult, EvaluationResult, str]]:
    """Whom to hold against whom, and what the second is to the first."""
    policies: dict[Stage, EvaluationResult] = {
        result.checkpoint.stage: result for result in evaluations if result.checkpoint.stage != "reward"
    }
    base, last = policies["base"], list(policies.values())[-1]
    for stage, result in policies.items():
        if stage != "base":
            yield result, policies[recipe.parent_of(stage)], "parent"
            yield result, base, "base"
    for alias, result in rivals.items():
        yield last, result, alias


def show_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Show the verdicts as a table in the Prefect UI."""
    rows = [
        {"model": one.model, "against": f"{one.role} {one.against}", "measure": each.measure, "verdict": str(each)}
        for one in comparisons
        for each in one.differences
    ]
    publish(create_table_artifact, rows, key="comparisons", description="Each model against what it came from")
