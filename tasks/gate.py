"""The gate: whether the last policy meets the recipe's conditions for promotion."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from models.aliases import alias_problem
from models.comparison import Comparison
from models.errors import InputError
from models.evaluation import Estimate
from models.gate import Better, ConditionResult, Gate, GateResult, NoWorse
from tasks.comparing import BETTER
from tasks.files import replace_file

_GATE = "gate.json"
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


def check_condition(condition: Better | NoWorse) -> None:
    """Refuse a condition that nothing can meet.

    Raises:
        InputError: no such measure has a better side, or no alias can have that name.
    """
    measure, known = condition.measure, [*(name for name, side in BETTER.items() if side), *_WIN_RATES]
    if not (measure in _WIN_RATES or _side(measure) or (isinstance(condition, NoWorse) and measure == "*")):
        near = get_close_matches(measure, known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"measures with a better side: {', '.join(known)}"
        raise InputError(f"gate: '{measure}' is no measure to go by; {remedy}")
    if condition.than not in ("parent", "base") and (problem := alias_problem(condition.than)):
        raise InputError(f"gate: '{condition.than}' is neither parent nor base nor an alias: {problem}")


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
        failed = "; ".join(f"{one.condition}: {one.found}" for one in result.conditions if not one.passed)
        remedy = "train on, or promote it with --despite-gate and a --reason"
        raise InputError(f"the gate is closed for {result.checkpoint}: {failed}; {remedy}")
