"""Rules about a reply's form, which need nothing of its row."""

import json
import re
from typing import NoReturn

from models.rewards import Shape
from tasks.core.columns import Row

_THOUGHTS = r"\s*<think>(?:(?!</?think>).)*</think>\s*"
_SHAPES = {
    "think": re.compile(rf"{_THOUGHTS}(?=\S)(?:(?!</?think>).)*", re.DOTALL),
    "think_answer": re.compile(rf"{_THOUGHTS}<answer>(?:(?!</?(?:answer|think)>).)+</answer>\s*", re.DOTALL),
    "boxed": re.compile(r".*\\boxed\s*\{\s*[^}\s].*\}.*", re.DOTALL),
}


def regex(reply: str, row: Row, *, pattern: str) -> float:
    """1 where the pattern is found in the reply."""
    return float(re.search(pattern, reply) is not None)


def shaped(reply: str, row: Row, *, shape: Shape) -> float:
    """1 where the whole reply has the shape: each part once, in order, none of them empty but the thoughts."""
    return float(is_json(reply) if shape == "json" else _SHAPES[shape].fullmatch(reply) is not None)


def length(reply: str, row: Row, *, min_words: int | None, max_words: int | None) -> float:
    """1 where the number of words is within the bounds, less in proportion where it is not.

    Below `min_words` a reply gets the share of them that it has. Above `max_words` it gets 1 less the share of
    `max_words` that is too much, so that twice as many get nothing.
    """
    words = len(reply.split())
    if min_words and words < min_words:
        return words / min_words
    if max_words and words > max_words:
        return max(0.0, 2 - words / max_words)
    return 1.0


def is_json(text: str) -> bool:
    """Whether `text` is one JSON value and nothing else; NaN and infinities are none."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
