"""The gate: whether the last policy meets the recipe's conditions for promotion."""

from collections.abc import Iterator, Sequence

from models.comparison import Comparison
from models.errors import InputError
from models.evaluation import Estimate
from models.gate import Better, ConditionResult, Gate, GateResult, NoWorse
from tasks.comparing import BETTER

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


def _better(asked: Better, comparison: Comparison | None) -> ConditionResult:
    surely = "surely " if asked.surely else ""
    condition = f"{asked.measure} {surely}better than {asked.than}" + (f" by at least {asked.by:g}" * bool(asked.by))
    if comparison is None:
        return _without_rival(condition, asked.than)
    gain = _gain(asked.measure, comparison)
    if gain is None:
        return _unmeasured(condition, asked.measure, comparison)
    reached = gain.low if asked.surely else gain.value
    passed = reached >= asked.by if asked.by else reached > 0
    return ConditionResult(condition=condition, passed=passed, found=_told(gain))


def _no_worse(asked: NoWorse, comparison: Comparison | None) -> ConditionResult:
    measure = "no measure" if asked.measure == "*" else f"{asked.measure} not"
    condition = f"{measure} worse than {asked.than}" + (f" by more than {asked.by:g}" * bool(asked.by))
    if comparison is None:
        return _without_rival(condition, asked.than)
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
    side = _side(measure)
    return _moved(difference.change, side) if difference and side else None


def _moved(figure: Estimate, side: int, by: float = 0.0) -> Estimate:
    ends = sorted(side * (end + by) for end in (figure.low, figure.high))
    return Estimate(value=side * (figure.value + by), low=ends[0], high=ends[1], n=figure.n)


def _side(measure: str) -> int:
    return BETTER.get(measure.rpartition(": ")[2].partition("/")[0], 0)


def _with_a_better_side(comparison: Comparison) -> Iterator[str]:
    yield from (one.measure for one in comparison.differences if _side(one.measure))


def _told(gain: Estimate) -> str:
    return f"{gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}] with {gain.n} rows"


def _without_rival(condition: str, alias: str) -> ConditionResult:
    return ConditionResult(condition=condition, passed=True, found=f"there is no '{alias}' yet")


def _unmeasured(condition: str, measure: str, comparison: Comparison) -> ConditionResult:
    known = ", ".join([*_with_a_better_side(comparison), *(name for name in _WIN_RATES if getattr(comparison, name))])
    found = f"'{measure}' was not measured of both, or has no better side; measured: {known or 'nothing'}"
    return ConditionResult(condition=condition, passed=False, found=found)


def refuse_unless_passed(result: GateResult | None, checkpoint: str) -> None:
    """Refuse to promote what a gate has not let pass.

    Raises:
        InputError: the gate is closed; the message names each condition that does not hold.
    """
    if result and not result.passed:
        failed = "; ".join(f"{one.condition}: {one.found}" for one in result.conditions if not one.passed)
        raise InputError(f"the gate is closed for {checkpoint}: {failed}; train on, or promote it with --despite-gate")
