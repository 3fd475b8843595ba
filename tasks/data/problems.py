"""What is wrong with one row, and which rule says so."""

import reprlib

from models.data_rules import Rule
from models.errors import InputError

FILL_IN = "fill it in or remove the row"

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 60


class RowProblem(InputError):
    """One row breaks a rule; the message has column, value seen, rule and remedy, but neither file nor row number."""

    def __init__(self, message: str, rule: Rule = "wrong_type") -> None:
        super().__init__(message)
        self.rule: Rule = rule


def problem(column: str, seen: str, rule: str, remedy: str, breaks: Rule = "wrong_type") -> RowProblem:
    """The error about one value of a row, without file and row."""
    return RowProblem(f"column '{column}': {seen}; {rule}; {remedy}", breaks)


def shown(value: object) -> str:
    """`value` as an error quotes it, shortened."""
    return "null" if value is None else _shortened.repr(value)


def text(value: object, column: str, rule: str = "it must be a text") -> str:
    """`value`, unchanged, if it is a text with something in it that has a UTF-8 form.

    Raises:
        RowProblem: it is not.
    """
    if value is None:
        raise problem(column, "got null", rule, FILL_IN, "missing")
    if not isinstance(value, str):
        raise problem(column, f"got {shown(value)}", rule, "change it or remove the row")
    if not value.strip():
        raise problem(column, "the text is empty", "it must have content", FILL_IN, "empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        rule = "half a surrogate pair is no character and cannot be stored"
        raise problem(column, f"got {shown(value)}", rule, "replace or remove it", "unicode")
    return value
