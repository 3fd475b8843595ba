"""The gate: whether the last policy meets the recipe's conditions for promotion."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from models.aliases import alias_problem
from models.artifacts import Checkpoint
from models.comparison import Comparison
from models.errors import InputError
from models.evaluation import Estimate
from models.gate import Better, ConditionResult, Gate, GateResult, NoWorse
from models.recipe import Recipe
from tasks.aliases import read_alias
from tasks.comparing import BETTER, better_side
from tasks.files import replace_file
from tasks.finding import as_checkpoint, resolve
from tasks.store import ArtifactStore

_GATE = "gate.json"
_OWN = ("parent", "base")
"""What a policy may be compared with beside aliases."""
_WIN_RATES = ("win_rate", "judged_win_rate")


def judge_gate(gate: Gate, checkpoint: str, comparisons: Sequence[Comparison]) -> GateResult:
    """Hold a checkpoint's comparisons against every condition.

    Args:
        gate: The conditions.
        checkpoint: Name of the checkpoint.
        comparisons: The checkpoint against its parent, the base model and the aliases, by role; an alias that is
            missing here does not exist, and what compares with it holds.
    """
    by_role = {one.role: one for one in comparisons if one.model == checkpoint}
    results = [
        *(_better(condition, by_role.get(condition.than)) for condition in gate.better),
        *(_no_worse(condition, by_role.get(condition.than)) for condition in gate.no_worse),
    ]
    return GateResult(checkpoint=checkpoint, passed=all(one.passed for one in results), conditions=tuple(results))


def find_rivals(recipe: Recipe, store: ArtifactStore) -> dict[str, Checkpoint]:
    """The checkpoints that the gate's aliases point to; an alias that does not exist yet is left out.

    Raises:
        InputError: what an alias points to is gone, or is a reward model.
    """
    found = {}
    for alias in recipe.gate.rivals if recipe.gate else ():
        if alias not in _OWN and read_alias(store.home, alias):
            found[alias] = as_checkpoint(*resolve(store, alias))
            if found[alias].stage == "reward":
                raise InputError(
                    f"gate: '{alias}' points to {found[alias].name}, a reward model; a policy can only beat a policy"
                )
    return found


def check_condition(condition: Better | NoWorse, recipe: Recipe) -> None:
    """Refuse a condition that nothing can meet.

    Raises:
        InputError: the recipe measures no such thing, it has no better side, or no alias can have that name.
    """
    known = _measured(recipe)
    if condition.measure.partition("/")[0] not in known and (
        condition.measure != "*" or not isinstance(condition, NoWorse)
    ):
        near = get_close_matches(condition.measure, known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"it can go by: {', '.join(known)}"
        raise InputError(f"gate: this recipe measures no '{condition.measure}' to go by; {remedy}")
    if condition.than not in _OWN and (problem := alias_problem(condition.than)):
        raise InputError(f"gate: '{condition.than}' is neither parent nor base nor an alias: {problem}")


def _measured(recipe: Recipe) -> list[str]:
    """The measures with a better side that both models of a comparison will have."""
    asked = recipe.evaluation
    missing = {"sampled_reward"} if not asked.num_samples else set()
    missing |= {"reward_score", "win_rate"} if not recipe.reward else set()
    missing |= {"judged_win_rate"} if not asked.judge else set()
    of_pairs = {"preference_accuracy"}
    of_prompts = {name for name, side in BETTER.items() if side} - of_pairs - missing
    names = of_prompts | (of_pairs if asked.preferences else set()) | set(_WIN_RATES) - missing
    for one in asked.sets:
        of_set = (of_prompts if one.prompts else set()) | (of_pairs if one.preferences else set())
        names |= {f"{one.name}: {name}" for name in of_set}
    return sorted(names)


def _better(asked: Better, comparison: Comparison | None) -> ConditionResult:
    surely = "surely " if asked.surely else ""
    condition = f"{asked.measure} {surely}better than {asked.than}" + (f" by at least {asked.by:g}" * bool(asked.by))
    if comparison is None or comparison.model == comparison.against:
        return _without_rival(condition, asked.than, comparison)
    gain = _gain(asked.measure, comparison)
    if gain is None:
        return _unmeasured(condition, asked.measure, comparison)
    reached = gain.low if asked.surely else gain.value
    passed = reached >= asked.by if asked.by else reached > 0
    return ConditionResult(condition=condition, passed=passed, found=_told(gain))


def _no_worse(asked: NoWorse, comparison: Comparison | None) -> ConditionResult:
    measure = "no measure" if asked.measure == "*" else f"{asked.measure} not"
    condition = f"{measure} worse than {asked.than}" + (f" by more than {asked.by:g}" * bool(asked.by))
    if comparison is None or comparison.model == comparison.against:
        return _without_rival(condition, asked.than, comparison)
    asked_for = [asked.measure] if asked.measure != "*" else list(_with_a_better_side(comparison))
    gains = {measure: _gain(measure, comparison) for measure in asked_for}
    if not gains or None in gains.values():
        return _unmeasured(condition, asked.measure, comparison)
    # Worse, beyond what chance explains, by more than is tolerated.
    lost = {name: gain for name, gain in gains.items() if gain and gain.high < 0 and -gain.value > asked.by}
    named = lost or (gains if asked.measure != "*" else {})
    found = "; ".join(f"{name} {_told(gain)}" for name, gain in named.items() if gain)
    return ConditionResult(condition=condition, passed=not lost, found=found or f"none of {len(gains)} is")


def _gain(measure: str, comparison: Comparison) -> Estimate | None:
    """How much better the checkpoint is, above 0 where it is, in the measure's own unit."""
    if measure in _WIN_RATES:
        rate: Estimate | None = getattr(comparison, measure)
        return rate and _moved(rate, 1, -0.5)
    difference = comparison.find(measure)
    side = better_side(measure)
    return _moved(difference.change, side) if difference and side else None


def _moved(figure: Estimate, side: int, by: float = 0.0) -> Estimate:
    ends = sorted(side * (end + by) for end in (figure.low, figure.high))
    return Estimate(value=side * (figure.value + by), low=ends[0], high=ends[1], n=figure.n)


def _with_a_better_side(comparison: Comparison) -> Iterator[str]:
    yield from (one.measure for one in comparison.differences if better_side(one.measure))


def _told(gain: Estimate) -> str:
    return f"{gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}] with {gain.n} rows"


def _without_rival(condition: str, than: str, itself: Comparison | None) -> ConditionResult:
    """An alias that does not exist yet, or points to the very checkpoint, stands in nobody's way."""
    if than in _OWN:
        return ConditionResult(condition=condition, passed=False, found=f"it was not compared with its {than}")
    found = f"it is the {than} itself" if itself else f"there is no '{than}' yet"
    return ConditionResult(condition=condition, passed=True, found=found)


def _unmeasured(condition: str, measure: str, comparison: Comparison) -> ConditionResult:
    known = ", ".join([*_with_a_better_side(comparison), *(name for name in _WIN_RATES if getattr(comparison, name))])
    found = f"'{measure}' was not measured of both, or has no better side; measured: {known or 'nothing'}"
    return ConditionResult(condition=condition, passed=False, found=found)


def save_gate(result: GateResult | None, run: Path) -> None:
    """Keep what a run's gate found beside its record."""
    if result:
        replace_file(run / _GATE, result.model_dump_json(indent=2))


def last_gate(home: Path, checkpoint: str) -> GateResult | None:
    """What the gate of the newest run that judged a checkpoint found; none: no run with a gate did."""
    for file in sorted((home / "runs").glob(f"*/{_GATE}"), reverse=True):
        with suppress(OSError, ValidationError):
            result = GateResult.model_validate_json(file.read_bytes())
            if result.checkpoint == checkpoint:
                return result
    return None


def refuse_closed_gate(result: GateResult | None) -> None:
    """Refuse to promote what a gate has not let pass.

    Raises:
        InputError: the gate is closed; the message names each condition that does not hold.
    """
    if result and not result.passed:
        failed = closed_by(result)
        remedy = "train on, or promote it with --despite-gate and a --reason"
        raise InputError(f"the gate is closed for {result.checkpoint}: {failed}; {remedy}")


def closed_by(result: GateResult) -> str:
    """The conditions that do not hold, each with what was found."""
    return "; ".join(f"{one.condition}: {one.found}" for one in result.conditions if not one.passed)
