"""How the report names and writes things: stages, measures, times, sizes."""

from datetime import datetime
from math import hypot
from typing import Literal

from models.artifacts import Stage
from models.evaluation import Estimate
from models.recipe import Recipe

Measure = Literal["exact_match", "sampled_reward", "preference_accuracy"]

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
    "preference_accuracy": "preference accuracy",
}

MEASURE_MEANINGS: dict[Measure, str] = {
    "exact_match": "Share of held-out prompts whose greedy reply the verifier accepts.",
    "sampled_reward": "Mean verifiable reward of replies sampled at temperature 1.",
    "preference_accuracy": "Share of held-out pairs whose chosen side scores higher; 0.50 is chance.",
}


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The base model and the stages that the recipe asks for, in the order of the pipeline."""
    return tuple(stage for stage in STAGES if stage == "base" or getattr(recipe, stage) is not None)


def change(before: Estimate, after: Estimate) -> Literal["raised", "lowered", "unclear"]:
    """Which way a measure went; `unclear` where the 95 % interval of the difference holds 0.

    The interval is Newcombe's (1998, method 10), made from the two intervals at hand.
    """
    difference = after.value - before.value
    low = difference - hypot(after.value - after.low, before.high - before.value)
    high = difference + hypot(after.high - after.value, before.value - before.low)
    if low > 0:
        return "raised"
    return "lowered" if high < 0 else "unclear"


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
    try:
        return duration((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())
    except (ValueError, TypeError):
        return UNKNOWN
