"""What a row expects: its accepted answers, from whatever column holds them."""

import math

from tasks.core.columns import Row
from tasks.data.problems import FILL_IN, problem, text


def answers(value: object, column: str) -> list[str]:
    """Accepted answers: a text, a finite number, or a list of them.

    Raises:
        InputError: it is something else, or an empty list.
    """
    if not isinstance(value, list):
        return [_answer(value, column)]
    if not value:
        raise problem(column, "the list is empty", "a prompt needs an accepted answer", FILL_IN)
    return [_answer(member, f"{column}[{index}]") for index, member in enumerate(value)]


def accepted(row: Row, column: str) -> list[str]:
    """The accepted answers in a column of a flat row that was checked."""
    return answers(row[column], column)


def _answer(value: object, column: str) -> str:
    """The text of an answer; 43.0 becomes `43`, since Parquet and JSON writers turn whole numbers into fractions."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    return text(value, column, "an answer is a text, a finite number, or a list of them")
