"""What is wrong with one row, and which rule says so."""

from models.data_rules import Rule
from models.errors import InputError


class RowProblem(InputError):
    """One row breaks a rule; the message has column, value seen, rule and remedy, but neither file nor row number."""

    def __init__(self, message: str, rule: Rule = "wrong_type") -> None:
        super().__init__(message)
        self.rule: Rule = rule
