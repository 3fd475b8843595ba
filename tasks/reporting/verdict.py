"""What a run taught, in words: each stage against the model it started from, judged by 95 % intervals."""

from models.artifacts import Stage
from models.evaluation import Estimate, EvaluationResult
from models.run import RunRecord
from tasks.reporting.words import MEASURE_NAMES, STAGE_NAMES, Direction, Measure, change, direction, stages_of

CHANCE = 0.5
"""Preference accuracy of a scorer that has learned nothing."""

KEY_MEASURES: dict[Stage, tuple[Measure, ...]] = {
    "base": ("exact_match", "sampled_reward", "preference_accuracy"),
    "sft": ("exact_match", "sampled_reward", "preference_accuracy"),
    "reward": ("preference_accuracy",),
    "dpo": ("preference_accuracy", "exact_match", "sampled_reward"),
    "grpo": ("sampled_reward", "exact_match", "preference_accuracy"),
}
"""What a stage is there to move, most telling first; the first one that was measured speaks for the stage."""


def by_stage(record: RunRecord) -> dict[Stage, EvaluationResult]:
    """The run's evaluations under the stage that made each model."""
    return {evaluation.checkpoint.stage: evaluation for evaluation in record.evaluations}


def estimate(evaluation: EvaluationResult | None, measure: Measure) -> Estimate | None:
    """One measure of an evaluation, `None` where either is missing."""
    found: Estimate | None = getattr(evaluation, measure) if evaluation else None
    return found


def key_figure(record: RunRecord, stage: Stage) -> tuple[str, str]:
    """The stage's most telling measure and its figure (`exact match`, `0.46`); empty where it was not evaluated."""
    for measure in KEY_MEASURES[stage]:
        if found := estimate(by_stage(record).get(stage), measure):
            return MEASURE_NAMES[measure], f"{found.value:.2f}"
    return "", ""


def movement(record: RunRecord, stage: Stage, measure: str) -> Direction:
    """Which way a figure went from the model that a stage started from, as far as chance does not explain it.

    Row by row where the two were compared, else by the two intervals.
    """
    if stage in ("base", "reward"):
        return "unclear"
    after, before = by_stage(record).get(stage), by_stage(record).get(record.recipe.parent_of(stage))
    if after is None or before is None:
        return "unclear"
    for comparison in record.comparisons:
        if (comparison.model, comparison.role) == (after.checkpoint.name, "parent"):
            difference = comparison.find(measure)
            if difference:
                return direction(difference.change)
    old, new = before.estimates().get(measure), after.estimates().get(measure)
    return change(old, new) if old and new else "unclear"


def verdict(record: RunRecord) -> str:
    """One sentence on what every stage of the recipe taught."""
    clauses = [stage_verdict(record, stage) for stage in stages_of(record.recipe) if stage != "base"]
    return "; ".join(clauses) + "."


def stage_verdict(record: RunRecord, stage: Stage) -> str:
    """One clause on what a stage taught: `SFT raised exact match from 0.00 to 0.46`."""
    name, after = STAGE_NAMES[stage], by_stage(record).get(stage)
    if after is None:
        finished = any(outcome.stage == stage for outcome in record.stages)
        return f"{name} was not evaluated" if finished else f"{name} has not finished"
    if stage == "reward":
        return f"the {name.lower()} {_ranking(after.preference_accuracy)}"
    before = by_stage(record).get(record.recipe.parent_of(stage))
    pairs = {measure: (estimate(before, measure), estimate(after, measure)) for measure in KEY_MEASURES[stage]}
    measured = {
        measure: (old, new, movement(record, stage, measure)) for measure, (old, new) in pairs.items() if old and new
    }
    if not measured:
        return f"{name} could not be compared with the model it started from"
    return f"{name} {_comparison(measured)}"


def _ranking(accuracy: Estimate | None) -> str:
    if accuracy is None:
        return "was not evaluated on pairs"
    share = f"ranks {100 * accuracy.value:.0f} % of held-out pairs correctly"
    if accuracy.low > CHANCE:
        return share
    return f"{share}, {'worse than' if accuracy.high < CHANCE else 'not distinguishable from'} chance"


def _comparison(measured: dict[Measure, tuple[Estimate, Estimate, Direction]]) -> str:
    """Say what became of the first measure, and which of the others clearly fell."""
    (key, (before, after, moved)), *others = measured.items()
    losses = [_movement(measure, *pair) for measure, pair in others if pair[2] == "lowered"]
    joint = " and " if moved == "lowered" else ", but "
    return joint.join([_movement(key, before, after, moved), *([" and ".join(losses)] if losses else [])])


def _movement(measure: Measure, before: Estimate, after: Estimate, direction: Direction) -> str:
    name = MEASURE_NAMES[measure]
    if direction == "unclear" and before.value == after.value:
        return f"did not move {name} ({after.value:.2f} before and after)"
    digits = 2 if f"{before.value:.2f}" != f"{after.value:.2f}" else 3
    step = f"from {before.value:.{digits}f} to {after.value:.{digits}f}"
    if direction == "unclear":
        return f"moved {name} {step}, within what chance explains"
    return f"{direction} {name} {step}"
