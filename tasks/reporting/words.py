"""How the report names and writes things: stages, measures, times, sizes."""

from datetime import datetime
from math import hypot
from typing import Literal

from models.artifacts import Stage
from models.evaluation import Estimate
from models.recipe import Recipe

Measure = Literal[
    "exact_match", "sampled_reward", "reward_score", "preference_accuracy", "implicit_accuracy", "loss", "perplexity",
    "kl", "length", "repetition", "unstopped",
]  # fmt: skip

Direction = Literal["raised", "lowered", "unclear"]

UNKNOWN = "—"
"""Stands where there is no figure."""

TIMES = "\N{MULTIPLICATION SIGN}"
"""Stands between factors."""

STAGES: tuple[Stage, ...] = ("base", "sft", "reward", "dpo", "grpo")
"""Every stage in the order of the pipeline."""

STAGE_NAMES: dict[Stage, str] = {
    "base": "Base model",
    "sft": "SFT",
    "reward": "Reward model",
    "dpo": "DPO",
    "grpo": "GRPO",
}

MEASURE_NAMES: dict[Measure, str] = {
    "exact_match": "exact match",
    "sampled_reward": "sampled reward",
    "reward_score": "reward model's score",
    "preference_accuracy": "preference accuracy",
    "implicit_accuracy": "implicit reward's accuracy",
    "loss": "loss",
    "perplexity": "perplexity",
    "kl": "KL from parent",
    "length": "length",
    "repetition": "repetition",
    "unstopped": "cut off",
}

MEASURE_MEANINGS: dict[Measure, str] = {
    "exact_match": "Share of held-out prompts whose greedy reply the verifier accepts.",
    "sampled_reward": "Mean verifiable reward of replies sampled at temperature 1.",
    "reward_score": "Mean score that the reward model gives to the greedy replies.",
    "preference_accuracy": "Share of held-out pairs whose chosen side scores higher; 0.50 is chance.",
    "implicit_accuracy": "Share of held-out pairs whose chosen side gained more on the parent than the rejected one.",
    "loss": "Negative log-likelihood of the accepted answers, in nats a token.",
    "perplexity": "Exponential of the loss.",
    "kl": "Divergence from the parent on the model's own replies, in nats a token.",
    "length": "Mean tokens of a greedy reply.",
    "repetition": "Share of a reply's groups of three tokens that have occurred in it before.",
    "unstopped": "Share of greedy replies that reach the longest length without ending.",
}

CHARTED: tuple[Measure, ...] = ("exact_match", "sampled_reward", "reward_score", "preference_accuracy")
"""Measures that are drawn, beside standing in the table."""


def measure_name(figure: str) -> str:
    """A figure's name for readers: `extra: exact_match/sum` as `extra: exact match of sum`."""
    place, _, name = figure.rpartition(": ")
    measure, _, kind = name.partition("/")
    known = {str(key): value for key, value in MEASURE_NAMES.items()}
    return f"{place}: " * bool(place) + known.get(measure, measure) + f" of {kind}" * bool(kind)


def number(value: float) -> str:
    """A figure as tables write it: what is small is not 0."""
    if 0 < abs(value) < 0.005:
        return f"{value:.1g}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The base model and the stages that the recipe asks for, in the order of the pipeline."""
    return tuple(stage for stage in STAGES if stage == "base" or getattr(recipe, stage) is not None)


def direction(difference: Estimate) -> Direction:
    """Which way a difference goes; `unclear` where its interval holds 0."""
    if difference.low > 0:
        return "raised"
    return "lowered" if difference.high < 0 else "unclear"


def change(before: Estimate, after: Estimate) -> Direction:
    """Which way a measure went; `unclear` where the 95 % interval of the difference holds 0.

    The interval is Newcombe's (1998, method 10), made from the two intervals at hand.
    """
    difference = after.value - before.value
    low = difference - hypot(after.value - after.low, before.high - before.value)
    high = difference + hypot(after.high - after.value, before.value - before.low)
    return direction(Estimate(value=difference, low=low, high=high, n=after.n))


def duration(seconds: float) -> str:
    """Write a time as people say it: `48 s`, `12 min 30 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size_bytes: int) -> str:
    """Write a size in GiB, or a dash where it is unknown."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes else UNKNOWN


def moment(timestamp: str) -> str:
    """Write an ISO 8601 time as `2026-01-31 14:05 UTC`; text in another form stays as it is."""
    try:
        when = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    return when.strftime("%Y-%m-%d %H:%M UTC")


def elapsed(started: str, finished: str) -> str:
    """Write the time between two ISO 8601 times, or a dash where one of them has another form."""
    seconds = seconds_between(started, finished)
    return UNKNOWN if seconds is None else duration(seconds)


def seconds_between(started: str, finished: str) -> float | None:
    """The time between two ISO 8601 times; none where one of them has another form."""
    try:
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return None
