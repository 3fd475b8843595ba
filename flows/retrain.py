"""Retraining, as schedules and events start it: train and judge what changed, then promote, ask, or say why not."""

from typing import Annotated

from prefect import get_run_logger

from flows.align import align
from flows.parameters import checked_flow, titled
from models.aliases import CHAMPION
from models.recipe import Recipe
from models.retraining import Outcome, Promotion, Retraining
from models.run import RunRecord
from settings.settings import load_settings
from tasks.approving import hold, promote_and_tell
from tasks.decisions import what_to_do
from tasks.ending import ended
from tasks.events import tell
from tasks.preflight import preflight
from tasks.recording import close_failed
from tasks.remote.opening import open_store
from tasks.retraining import gate_of_retraining, is_there, judged_before, standing
from tasks.store import ArtifactStore

_STATES: dict[Outcome, str] = {
    "promoted": "Promoted",
    "held": "Held",
    "rejected": "Rejected",
    "gate_closed": "GateClosed",
    "not_promoted": "NotPromoted",
}


@checked_flow(name="retrain", on_failure=[close_failed], on_crashed=[close_failed], on_cancellation=[close_failed])
def retrain(
    recipe: Annotated[Recipe, titled("What to train")],
    recipe_name: Annotated[str, titled("Recipe's name")] = "recipe",
    promotion: Annotated[Promotion, titled("Promotion")] = "approval",
    alias: Annotated[str, titled("Alias")] = CHAMPION,
    approval_days: Annotated[float, titled("Days to approve")] = 7.0,
) -> Retraining:
    """Read the data anew, train and judge what has changed, and promote the last policy where its gate is open.

    Where nothing has changed since a run that has judged the same, this ends within seconds as `Unchanged`. The other
    ends are `Promoted`, `Held` (a person is asked), `NotPromoted`, `Rejected` (by a person, before) and `GateClosed`.
    All are kinds of Completed: a closed gate is an answer, not a fault, and a Retry would not open it. Failed, Crashed
    and Cancelled mean what they mean for `align`, whose stages and record these are: Retry goes on where it stopped.

    Args:
        recipe: What to train. Its gate decides about promotion; unless that names the alias itself, no measure may
            moreover be worse than that of the checkpoint that the alias points to, beyond chance.
        recipe_name: What the run is called after.
        promotion: What becomes of a policy that passes its gate, the very first one too. `automatic`: the alias points
            to it; `approval`: a person is asked; `never`: nothing.
        alias: What the policy is held against, and what shall point to it.
        approval_days: How long a person has to decide; then nothing is promoted, and the next retraining asks again.

    Raises:
        InputError: recipe, data or machine cannot do what was asked.
        StageError: a stage failed.
    """
    store = open_store(load_settings())
    asked = recipe.model_copy(update={"gate": gate_of_retraining(recipe, alias)})
    known = judged_before(asked, preflight(asked, load_settings()), store)
    stands = standing(known, store, alias) if known else None
    if known and stands:
        return _end(known, *stands, unchanged=True)
    fresh = not (known and is_there(known, store))
    record: RunRecord = align.fn(asked, recipe_name) if fresh else known  # type: ignore[assignment]
    stands = standing(record, store, alias)
    if stands:
        return _end(record, *stands)
    if promotion == "never":
        return _end(record, "not_promoted", "its gate is open, and nobody asked to promote it", unchanged=not fresh)
    return _end(record, *_promote_or_ask(record, store, promotion, alias, approval_days))


def _promote_or_ask(
    record: RunRecord, store: ArtifactStore, promotion: Promotion, alias: str, approval_days: float
) -> tuple[Outcome, str]:
    """What becomes of a policy that passes its gate: the outcome and the reason."""
    if promotion == "approval":
        return "held", what_to_do(hold(store, record, alias, approval_days))
    reason = f"retraining {record.id}: its gate is open"
    promote_and_tell(store, record.policies[-1].path, alias, by=load_settings().promoted_by, reason=reason)
    return "promoted", f"{alias} points to it"


def _end(record: RunRecord, outcome: Outcome, why: str, unchanged: bool = False) -> Retraining:
    """Say in log, state and, where nothing was to be done, an event how the retraining ended."""
    checkpoint = record.policies[-1].name
    message = f"{checkpoint}: {why}"
    if unchanged:
        message = f"nothing has changed since run {record.id}; {message}"
        tell("align.run.unchanged", record.id, message, checkpoint=checkpoint, outcome=outcome)
    get_run_logger().info(message)
    result = Retraining(outcome=outcome, checkpoint=checkpoint, run=record.id, unchanged=unchanged, message=message)
    return ended("Unchanged" if unchanged else _STATES[outcome], message, result)
