"""Evaluation as a flow of its own: judge any model on a recipe's held-out rows, and hold it against a second one."""

from typing import Annotated

from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.parameters import checked_flow, titled
from models.artifacts import Dataset
from models.evaluation import EvaluationResult
from models.recipe import Recipe
from models.rewards import Verifier
from models.sources import DatasetSource
from models.stages import EvaluationInput
from settings.settings import Settings, load_settings
from tasks.compare import show_comparisons
from tasks.comparing import compare
from tasks.contest import Contest, find_entrants, write_page
from tasks.data.checking import cleaning_of
from tasks.data.formats.reading import Role
from tasks.dataset import prepare_dataset
from tasks.evaluate import evaluate as judge_one
from tasks.evaluate import held_out, show_figures
from tasks.execution import plan_execution
from tasks.remote.opening import learn, open_store
from tasks.stopping import stop_stages_on_signals


@checked_flow(name="evaluate")
def evaluate(
    checkpoint: Annotated[str, titled("Model")],
    recipe: Annotated[Recipe | None, titled("Recipe")] = None,
    against: Annotated[str | None, titled("Against")] = None,
) -> list[EvaluationResult]:
    """Judge a model on held-out rows, as far as that has not been done, and show its figures as a table.

    Args:
        checkpoint: An alias, a stage (its newest checkpoint), a name, or a run: its last policy.
        recipe: Says what to measure on which rows; default: that of the newest run that has made one of the models.
        against: A second one to judge on the same rows; both are compared row by row, and a page about them is written.

    Returns:
        The figures of the model, and of the second one.

    Raises:
        InputError: one of them is not there or is a reward model, both are one, or no run says what to measure.
    """
    settings = load_settings()
    store = open_store(settings)
    learn(store, get_run_logger().warning)
    contest = find_entrants(store, [checkpoint, against] if against else [checkpoint], recipe)
    results = judge(contest, settings)
    show_figures(results)
    if against:
        model, rival = results
        found = compare(model, rival, "other")
        show_comparisons([found])
        write_page(store, found, rival, model)
    return results


def judge(contest: Contest, settings: Settings) -> list[EvaluationResult]:
    """Judge models on the same rows within a flow run, each once."""
    execution = plan_execution(contest.recipe, settings)
    stop_stages_on_signals(lambda reason: False, str(flow_run.id))

    def rows(source: DatasetSource, role: Role, rules: tuple[Verifier, ...] = ()) -> PrefectFuture[Dataset]:
        asked = (source, role, contest.recipe.system_prompt, execution, rules, cleaning_of(contest.recipe))
        return prepare_dataset.submit(*asked)

    heldout = held_out(contest.recipe, rows)
    inputs = [
        EvaluationInput(checkpoint=one, parent=parent, reward_model=contest.reward_model, **heldout)
        for one, parent in contest.entrants
    ]
    judged = [judge_one.submit(one, execution.shared_by(len(inputs))) for one in inputs]
    return [each.result() for each in judged]
