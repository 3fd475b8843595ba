"""Verifiable rewards: 1 where a reply is right by a rule, else 0. Their signature is TRL's for reward functions."""

from collections.abc import Callable, Sequence
from typing import Any

from models.rewards import Verifier

RewardFunction = Callable[..., list[float]]
Conversation = Sequence[dict[str, Any]]


def exact_answer(completions: Sequence[Conversation], answer: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """1 where the reply, without the space around it, is one of the row's accepted answers.

    Args:
        completions: One conversation a completion, ending with the assistant's reply.
        answer: The accepted answers of each completion's row.
    """
    return [float(_reply(done) in accepted) for done, accepted in zip(completions, answer, strict=True)]


def math_verify(completions: Sequence[Conversation], answer: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """1 where the reply's last formula equals an accepted answer as mathematics (Math-Verify)."""
    return [
        float(any(_same_formula(_reply(done), option) for option in accepted))
        for done, accepted in zip(completions, answer, strict=True)
    ]


VERIFIERS: dict[str, RewardFunction] = {"exact_answer": exact_answer, "math_verify": math_verify}


def verify(rule: Verifier, replies: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
    """What each reply gets by the rule; 1: right.

    Args:
        rule: The rule.
        replies: Texts of the replies.
        rows: The row of a prompts snapshot that each reply answers.
    """
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    return VERIFIERS[rule.kind](completions=completions, answer=[row["answer"] for row in rows])


def _reply(completion: Conversation) -> str:
    return str(completion[-1]["content"]).strip()


def _same_formula(reply: str, answer: str) -> bool:
    from math_verify import parse, verify

    # Math-Verify's time limits rely on signals of the main thread, which another thread must not use.
    return bool(verify(parse(answer, parsing_timeout=None), parse(reply, parsing_timeout=None), timeout_seconds=None))
