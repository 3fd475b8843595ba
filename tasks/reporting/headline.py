"""The report's first screen: did it get better, by how much, how sure is that, what did it cost, what to look at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.artifacts import Manifest
from models.comparison import Comparison, Difference
from models.gate import GateResult
from models.run import RunRecord
from tasks.reporting.words import STAGE_NAMES, duration, measure_name, memory, seconds_between

_TELLING = ("sampled_reward", "exact_match", "reward_score", "preference_accuracy", "loss")
"""Measures that may speak for a whole model; the first one that clearly moved does, else the first one there is."""
_JOULES_PER_KILOWATT_HOUR = 3.6e6
_MANY_CUT_OFF = 0.5
"""A larger share of replies that end only for want of room is worth a look."""


@dataclass(frozen=True)
class Answer:
    """One question of the first screen with its answer."""

    question: str
    short: str
    """In a word or a figure."""
    long: str
    """In a sentence."""
    tone: str = "plain"
    """`good`, `bad` or `plain`."""


def headline(record: RunRecord, manifests: dict[str, Manifest]) -> list[Answer]:
    """The answers for people who decide; those that a run cannot give yet are left out."""
    answers = [
        _progress(one, question)
        for role, question in (("base", "Better than the base model?"), ("parent", "Better by the last stage?"))
        if (one := last_comparison(record, role)) and one.differences
    ]
    return [*answers, _gate(record.gate), _cost(record, manifests), _look_at(record)] if answers else []


def last_comparison(record: RunRecord, role: str) -> Comparison | None:
    """The last policy's comparison with its `parent`, the `base` model or an alias."""
    last = record.policies[-1].name if record.policies else ""
    return next((one for one in record.comparisons if (one.model, one.role) == (last, role)), None)


def progress(comparison: Comparison) -> tuple[str, str, str]:
    """Whether a model is better than another one: in a word, in a sentence, and as a tone."""
    speaker = _speaker(comparison.differences)
    worse = [one for one in comparison.differences if one.verdict == "worse" and "/" not in one.measure]
    short = {"better": "Yes", "worse": "No, worse", "unclear": "Can't tell"}[speaker.verdict]
    if speaker.verdict == "better" and worse:
        short = "Yes, but"
    tone = {"Yes": "good", "No, worse": "bad"}.get(short, "plain")
    sentences = [_sentence(speaker), *(_sentence(one) for one in worse if one is not speaker)]
    return short, "; ".join(sentences[:3]) + ".", tone


def _progress(comparison: Comparison, question: str) -> Answer:
    short, long, tone = progress(comparison)
    return Answer(question, short, long, tone)


def _speaker(differences: Sequence[Difference]) -> Difference:
    """The difference that speaks for the model."""
    telling = [one for name in _TELLING for one in differences if one.measure == name] or list(differences)
    return next((one for one in telling if one.verdict != "unclear"), telling[0])


def _sentence(one: Difference) -> str:
    change = one.change
    name = measure_name(one.measure)
    if change.low == change.high == 0:
        return f"{name} is {one.after:.3g} as before, on each of {change.n} rows"
    sure = f"95 % sure of {change.low:+.2g} to {change.high:+.2g} on {change.n} rows"
    if one.verdict == "unclear":
        sure = f"which {change.n} rows cannot tell from chance ({change.low:+.2g} to {change.high:+.2g})"
    return f"{name} from {one.before:.3g} to {one.after:.3g}, {sure}"


def _gate(gate: GateResult | None) -> Answer:
    question = "May it be promoted?"
    if not gate:
        return Answer(question, "You decide", "This run's recipe sets no conditions (gate).")
    failed = [one for one in gate.conditions if not one.passed]
    told = "; ".join(f"{one.condition}: {one.found}" for one in failed or gate.conditions)
    return Answer(question, "Yes" if gate.passed else "No", told + ".", "good" if gate.passed else "bad")


def _cost(record: RunRecord, manifests: dict[str, Manifest]) -> Answer:
    spent = sum(outcome.seconds for outcome in record.stages)
    took = seconds_between(record.started, record.finished or "")
    judged = sum(evaluation.seconds for evaluation in record.evaluations)  # with those that were there already
    judged = judged if took is None else min(judged, took)
    made = [manifests[one.checkpoint.name] for one in record.stages if one.checkpoint.name in manifests]
    peak = max((manifest.metrics.get("peak_memory_bytes", 0.0) for manifest in made), default=0.0)
    energy = sum(manifest.metrics.get("energy_joules", 0.0) for manifest in made)
    cached = [STAGE_NAMES[outcome.stage] for outcome in record.stages if outcome.cached]
    parts = [f"at most {duration(judged)} of evaluation"] if judged else []
    parts += [f"peak memory {memory(int(peak))}"] if peak else []
    parts += [f"{energy / _JOULES_PER_KILOWATT_HOUR:.3g} kWh for what it is made of"] if energy else []
    earlier = sum(manifest.metrics.get("seconds", 0.0) for manifest in made) - spent
    parts += [f"made before this run: {', '.join(cached)} ({duration(earlier)} then)"] if cached else []
    trained = f"{duration(spent)} of training" if spent else "No training"
    return Answer("What did it cost?", trained, "; ".join(parts) + "." * bool(parts))


def _look_at(record: RunRecord) -> Answer:
    found = list(_concerns(record))
    if not found:
        return Answer("What to look at?", "Nothing", "No alarm, and nothing became worse from stage to stage.", "good")
    return Answer("What to look at?", f"{len(found)} thing{'s' * (len(found) > 1)}", "; ".join(found) + ".", "bad")


def _concerns(record: RunRecord) -> Iterator[str]:
    for outcome in record.stages:
        for alarm in outcome.alarms:
            yield f"alarm in {STAGE_NAMES[outcome.stage]}: {alarm.name.replace('_', ' ')}"
    names = {outcome.checkpoint.name: STAGE_NAMES[outcome.stage] for outcome in record.stages}
    replying = [(one.checkpoint.stage, one.unstopped.value) for one in record.evaluations if one.unstopped]
    stage, cut_off = replying[-1] if replying else ("base", 0.0)
    if cut_off > _MANY_CUT_OFF:
        yield f"{100 * cut_off:.0f} % of {STAGE_NAMES[stage]}'s replies are cut off (evaluation.max_new_tokens)"
    for comparison in record.comparisons:
        worse = [measure_name(one.measure) for one in comparison.differences if one.verdict == "worse"]
        if worse and comparison.role == "parent":
            yield f"{names.get(comparison.model, comparison.model)} made worse: {', '.join(worse)}"
        if comparison.judge_failures:
            yield f"the judge gave no verdict on {comparison.judge_failures} prompts"
