"""Verifiable rewards: what a reply gets by a rule that a program can check; 1: right.

A rule is a function of the reply, the row that it answers and the options of its kind. The row is flat: prompt, answer
and kind beside every further column of the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.rewards import Reward, Verifier
from tasks.core.columns import Row, flat
from tasks.core.verifiers.answers import choice, exact_answer, exact_number, math_verify
from tasks.core.verifiers.instructions import instructions
from tasks.core.verifiers.shapes import length, regex, shaped

RewardFunction = Callable[..., Sequence[float | None]]
"""TRL's signature: prompts, completions, completion_ids and every column of the rows, all as keywords."""

_RULES: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "exact_answer": (exact_answer, ("column",)),
    "exact_number": (exact_number, ("column",)),
    "math_verify": (math_verify, ("column",)),
    "choice": (choice, ("column",)),
    "regex": (regex, ("pattern",)),
    "format": (shaped, ("shape",)),
    "length": (length, ("min_words", "max_words")),
    "instructions": (instructions, ()),
}
"""Each kind's function, and the options that it takes."""
VERIFIERS = frozenset(_RULES)
"""The kinds of rules."""


def verify(rule: Verifier, replies: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """What each reply gets by the rule; 1: right.

    Args:
        rule: The rule.
        replies: Texts of the replies.
        rows: The row of a prompts snapshot that each reply answers.
    """
    judge = _judge(rule)
    return [judge(reply, flat(row)) for reply, row in zip(replies, rows, strict=True)]


@dataclass(frozen=True)
class VerifiableReward:
    """A rule as TRL calls a reward function."""

    judge: "partial[float]"
    """The rule with its options; takes a reply and a flat row."""
    __name__: str
    """What figures call it."""

    def __call__(self, completions: Sequence[Sequence[dict[str, Any]]], **columns: Any) -> list[float]:
        """What each completion gets.

        Args:
            completions: One conversation a completion, ending with the assistant's reply.
            columns: Every column of the rows, one value a completion, and what else TRL hands over.
        """
        listed = {name: values for name, values in columns.items() if isinstance(values, list)}
        rows = [{name: values[at] for name, values in listed.items()} for at in range(len(completions))]
        return [self.judge(str(done[-1]["content"]), row) for done, row in zip(completions, rows, strict=True)]


def verifiable_reward(reward: Reward) -> VerifiableReward:
    """The reward function of a rule."""
    return VerifiableReward(_judge(reward), reward.label)


def _judge(rule: Verifier | Reward) -> "partial[float]":
    function, options = _RULES[rule.kind]
    return partial(function, **{option: getattr(rule, option) for option in options})
