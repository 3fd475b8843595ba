"""Whether a row has what a reward or a verifier reads of it, found out before any model loads."""

from difflib import get_close_matches

from models.errors import InputError
from models.rewards import Reward, Verifier
from models.trl_options import SOLVED_BY_TRL
from tasks.core.columns import Row
from tasks.core.verifiers.answers import chosen_letter
from tasks.core.verifiers.expected import answers
from tasks.core.verifiers.instructions import check_instructions
from tasks.core.verifiers.numbers import final_number
from tasks.data.problems import problem, shown
from tasks.data.readers import shown_names

_COMPARING = ("exact_answer", "exact_number", "math_verify", "choice")
_TAKEN_BY_TRL = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
)  # fmt: skip


def check_row(row: Row, rule: Reward | Verifier) -> None:
    """Whether the rule can judge replies to a flat row.

    Raises:
        InputError: a column is missing, or holds nothing that the rule can compare replies with.
    """
    if isinstance(rule, Reward):
        _refuse_names_of_trl(row)
    if rule.kind == "instructions":
        check_instructions(row)
    elif rule.kind in _COMPARING or (isinstance(rule, Reward) and rule.trl in SOLVED_BY_TRL):
        _check_expected(row, rule.column, rule.kind)


def _check_expected(row: Row, column: str, kind: str) -> None:
    if row.get(column) in (None, []):
        raise _missing(row, column, kind)
    for expected in answers(row[column], column):
        if kind == "exact_number" and final_number(expected) is None:
            raise problem(column, f"no number in {shown(expected)}", f"{kind} compares numbers", "correct it")
        if kind == "choice" and chosen_letter(expected) is None:
            rule = f"{kind} compares letters of options, such as 'B'"
            raise problem(column, f"no letter in {shown(expected)}", rule, "write the letter of the right option")


def _missing(row: Row, column: str, kind: str) -> InputError:
    names = [name for name, value in row.items() if name != "kind" and value not in (None, [])]
    further = [name for name in names if name != "prompt"]
    near = get_close_matches(column, further, n=1)
    renamed = f"did you mean '{near[0]}'? rename it to '{column}', or set column: {near[0]}" if near else ""
    remedy = renamed or "fill it in, or set the rule's `column` to the one that holds what is right"
    return problem(column, f"it is missing; columns found: {shown_names(names)}", f"{kind} reads it", remedy)


def _refuse_names_of_trl(row: Row) -> None:
    taken = next((name for name in _TAKEN_BY_TRL if name in row), None)
    if taken:
        raise problem(taken, "its name is taken", "reward functions get something else under this name", "rename it")
