"""Any two models on the same held-out rows: what is better, what is worse, and a page that shows it."""

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from models.artifacts import Dataset
from models.comparison import Comparison
from models.recipe import Recipe
from models.rewards import Verifier
from models.sources import DatasetSource
from models.stages import EvaluationInput
from settings.settings import load_settings
from tasks.comparing import compare as compare_rows
from tasks.contest import find_contest, write_page
from tasks.data.rows import Role
from tasks.dataset import prepare_dataset
from tasks.evaluate import evaluate, held_out
from tasks.execution import plan_execution
from tasks.stopping import stop_stages_on_signals
from tasks.store import ArtifactStore


@flow(name="compare")
def compare(a: str, b: str, recipe: Recipe | None = None, page: Path | None = None) -> tuple[Comparison, Path]:
    """Judge two models on the same rows, as far as that has not been done, and write a page.

    Args:
        a: A checkpoint, as the other commands take it, or a run: its last policy.
        b: The one to hold against it.
        recipe: Says what to measure on which rows; default: that of the newest run that has made one of the two.
        page: The HTML file; default: below the artifact root's `comparisons`.

    Returns:
        What became of each measure from `a` to `b`, and the page.

    Raises:
        InputError: one of them is not there, is a reward model, or no run says what to measure.
    """
    settings = load_settings()
    store = ArtifactStore(settings.home)
    contest = find_contest(store, a, b, recipe)
    execution = plan_execution(contest.recipe, settings)
    stop_stages_on_signals(lambda reason: False, str(flow_run.id))

    def rows(source: DatasetSource, role: Role, rules: tuple[Verifier, ...] = ()) -> Dataset:
        return prepare_dataset.submit(source, role, contest.recipe.system_prompt, execution, rules).result()

    heldout = held_out(contest.recipe, rows)
    inputs = [
        EvaluationInput(checkpoint=one, parent=parent, reward_model=contest.reward_model, **heldout)
        for one, parent in contest.entrants
    ]
    judged = [evaluate.submit(one, execution.shared_by(len(inputs))) for one in inputs]
    before, after = (each.result() for each in judged)
    found = compare_rows(after, before, "other")
    return found, write_page(store, found, before, after, page)
