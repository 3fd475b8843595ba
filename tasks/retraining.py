"""Whether a recipe leads to anything new, and where the policy that it leads to stands with an alias.

A run is known before it starts: the names of its base model, snapshots and checkpoints are fingerprints of everything
that decides them. Where a completed run of the same recipe needed the very same names, and its last policy was held
against what the gate's aliases point to now, there is nothing to train and nothing to judge.
"""

from models.aliases import Alias
from models.gate import Gate, NoWorse
from models.recipe import Recipe
from models.retraining import Outcome
from models.run import RunRecord
from tasks.aliases import read_alias
from tasks.decisions import read_decision, stands, what_to_do
from tasks.gate import closed_by
from tasks.preflight import Preflight
from tasks.pruned import is_pruned
from tasks.run_record import all_runs
from tasks.store import ArtifactStore, damage


def gate_of_retraining(recipe: Recipe, alias: str) -> Gate:
    """The recipe's gate, which in retraining always holds the last policy against the alias that it shall replace.

    Where the recipe's own does not name the alias, no measure may be worse than that one's beyond chance. Not being
    better is no reason to keep the old policy: the new one has seen the newer data. Of many measures one may look worse
    by chance alone; then the old policy stays, which costs less than promoting a bad one unseen.
    """
    keeps_up = NoWorse(measure="*", than=alias)
    if not recipe.gate:
        return Gate(no_worse=(keeps_up,))
    if alias in recipe.gate.rivals:
        return recipe.gate
    return recipe.gate.model_copy(update={"no_worse": (*recipe.gate.no_worse, keeps_up)})


def judged_before(recipe: Recipe, found: Preflight, store: ArtifactStore) -> RunRecord | None:
    """The newest run that has trained and judged what the recipe leads to now; none: there is something to do.

    Args:
        recipe: What would be trained, with the gate of retraining.
        found: What preflight has found of it: datasets are read anew there, and hub datasets at their newest commit.
        store: The artifact root.
    """
    records, _ = all_runs(store.home)
    return next((one for one in records if _is_the_same(one, recipe, found) and _has_met(one, store)), None)


def _is_the_same(record: RunRecord, recipe: Recipe, found: Preflight) -> bool:
    """Whether a run took and made the very folders that the recipe leads to, and measured and asked the same."""
    return record.state == "completed" and record.recipe == recipe and set(record.needs) == set(found.needs)


def _has_met(record: RunRecord, store: ArtifactStore) -> bool:
    """Whether a run's last policy was held against what the gate's aliases point to, or is that itself."""
    last = record.policies[-1].name
    met = {one.role: one.against for one in record.comparisons if one.model == last}
    for rival in record.recipe.gate.rivals if record.recipe.gate else ():
        alias = read_alias(store.home, rival)
        if alias and alias.checkpoint not in (last, met.get(rival)):
            return False
    return True


def is_there(record: RunRecord, store: ArtifactStore) -> bool:
    """Whether the last policy of a run can be promoted as it lies in the artifact root or its remote."""
    path = store.locate(record.policies[-1].name)
    if not path or damage(path):
        return False
    return not is_pruned(path) or bool(store.remote and store.remote.has(path))


def standing(record: RunRecord, store: ArtifactStore, name: str) -> tuple[Outcome, str] | None:
    """Where the last policy of a run stands with an alias, and why; none: whether to promote it is still to be decided.

    A person's word counts for more than the gate's: a policy that was rejected or taken back is not offered again.
    """
    checkpoint = record.policies[-1].name
    alias = read_alias(store.home, name)
    if alias and alias.checkpoint == checkpoint:
        return "promoted", f"{name} points to it since {alias.history[-1].when}"
    if taken_back := alias and _taken_back(alias, checkpoint):
        return "rejected", taken_back
    decision = read_decision(store.home, name, checkpoint)
    if decision and decision.state == "rejected":
        return "rejected", f"rejected by {decision.by or 'somebody'} on {decision.decided}: {decision.reason}"
    if decision and stands(decision, alias):
        return "held", what_to_do(decision)
    if record.gate and not record.gate.passed:
        return "gate_closed", f"the gate is closed: {closed_by(record.gate)}"
    return None


def _taken_back(alias: Alias, checkpoint: str) -> str:
    """Who rolled an alias back from a checkpoint, where that is the last that happened to both."""
    for entry in reversed(alias.history):
        if entry.checkpoint == checkpoint:
            return ""
        if entry.kind == "rollback" and entry.previous == checkpoint:
            return f"{alias.name} was rolled back from it on {entry.when} by {entry.by or 'somebody'}: {entry.reason}"
    return ""
