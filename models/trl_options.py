"""The options of TRL's own reward functions, known here so that a wrong one is refused before TRL is imported."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal

from pydantic import JsonValue

TRLReward = Literal[
    "accuracy_reward",
    "reasoning_accuracy_reward",
    "get_cosine_scaled_reward",
    "think_format_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
]
SOLVED_BY_TRL: tuple[TRLReward, ...] = (
    "accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward",
)  # fmt: skip
"""Functions that compare a completion with a solution, which the row holds."""
TRL_OPTIONS: dict[TRLReward, tuple[str, ...]] = {
    "accuracy_reward": (),
    "reasoning_accuracy_reward": ("reasoning_delimiters",),
    "get_cosine_scaled_reward": (
        "max_len", "min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct",
    ),
    "think_format_reward": (),
    "get_repetition_penalty_reward": ("ngram_size", "max_penalty"),
    "get_soft_overlong_punishment": ("max_completion_len", "soft_punish_cache"),
}  # fmt: skip
"""Every function, and the options that it takes."""
TRL_NEEDS: dict[TRLReward, tuple[str, ...]] = {
    "get_cosine_scaled_reward": ("max_len",),
    "get_soft_overlong_punishment": ("max_completion_len", "soft_punish_cache"),
}
"""Options that a function cannot do without."""
_COUNTS = ("max_len", "ngram_size", "max_completion_len", "soft_punish_cache")
"""Options that are whole numbers of tokens."""


def check_trl_options(function: TRLReward, options: Mapping[str, JsonValue]) -> None:
    """Whether a function of TRL takes these options.

    Raises:
        ValueError: one is unknown, missing, or of another type.
    """
    known = TRL_OPTIONS[function]
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(option, known, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known) or 'none'}"
            raise ValueError(f"options: {function} has no option '{option}'; {remedy}")
        if wanted := _fault(option, value):
            raise ValueError(f"options: {option} {value!r} of {function} must be {wanted}; change it")
    missing = [option for option in TRL_NEEDS.get(function, ()) if option not in options]
    if missing:
        raise ValueError(f"options: {function} needs {' and '.join(missing)}; add it under options")


def _fault(option: str, value: JsonValue) -> str:
    """What an option's value should be, where it is not."""
    if option == "reasoning_delimiters":
        texts = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
        return "" if texts else "a list of texts"
    if option in _COUNTS:
        return "" if isinstance(value, int) and not isinstance(value, bool) and value > 0 else "a whole number above 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "a number"
    return "0 or less" if option == "max_penalty" and value > 0 else ""
