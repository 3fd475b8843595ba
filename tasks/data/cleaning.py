"""What becomes of single rows by the data rules: they are taken, mended, left out, or end the run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from models.data_rules import Action, DataRules, Rule
from models.errors import InputError
from tasks.data.lines import Row
from tasks.data.marks import CONVERSATIONS, found_marks, without_marks
from tasks.data.problems import RowProblem, problem, shown, text
from tasks.data.turns import role_of

SHORTENED = 200
"""Characters of a row that the list of what was left out shows."""
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    place: str
    """File and number of the row; empty where the message names the file as a whole."""
    rule: Rule
    """The rule that it breaks."""
    message: str
    """Column, value seen, rule and remedy."""
    action: Action = "error"
    """What becomes of the row."""
    row: str = ""
    """The row as it was read, shortened."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass
class Cleaner:
    """Brings rows to normal form by the rules, and notes what it found."""

    rules: DataRules
    """What becomes of a row that breaks a rule."""
    special_tokens: Sequence[str] = ()
    """Of the model that will read the rows."""
    ends_with: tuple[str, ...] = ("assistant",)
    """Roles that a conversation may end with."""
    problems: list[Problem] = field(default_factory=list)
    """What was found, in order."""

    def cleaned(self, place: str, entry: Row | InputError, convert: Callable[[Row | InputError], Row]) -> Row | None:
        """The normal form of a row; None where it is left out or ends the run.

        Args:
            place: File and number of the row.
            entry: The row as it was read.
            convert: Brings it to normal form.
        """
        mended: set[Rule] = set()
        given = entry
        while True:
            try:
                return self._as_spoken(place, convert(given), entry)
            except InputError as error:
                rule: Rule = error.rule if isinstance(error, RowProblem) else "wrong_type"
                action = self.rules.of(rule)
                if action != "fix" or rule in mended or not isinstance(given, dict):
                    self._note(place, rule, str(error), "drop" if action == "fix" else action, entry)
                    return None
                mended.add(rule)
                given = _without_surrogates(given) if rule == "unicode" else _cut(given, self.ends_with)
                self._note(place, rule, str(error), "fix", entry)

    def _as_spoken(self, place: str, row: Row, entry: Row | InputError) -> Row:
        """The row in normal form, if the turns' order and what they say may stay, or with the marks removed.

        Raises:
            RowProblem: they may not.
        """
        for breaking in (_turn_order(row), *self._marks(row)):
            if breaking is None:
                continue
            action = self.rules.of(breaking.rule)
            if action in ("error", "drop"):
                raise breaking
            self._note(place, breaking.rule, str(breaking), action, entry)
        fixed = {rule for rule in ("special_tokens", "foreign_marks") if getattr(self.rules, rule) == "fix"}
        marks = [mark for _, mark, own in found_marks(row, self.special_tokens) if _rule_of(own) in fixed]
        return _still_speaking(without_marks(row, marks)) if marks else row

    def _marks(self, row: Row) -> list[RowProblem]:
        """The first mark of each kind."""
        found: dict[Rule, RowProblem] = {}
        for place, mark, own in found_marks(row, self.special_tokens):
            rule = "it is a special token of the model" if own else "it is a mark of a chat template"
            remedy = f"remove it, or use data_rules.{_rule_of(own)}: fix"
            found.setdefault(_rule_of(own), problem(place, f"the text holds {mark!r}", rule, remedy, _rule_of(own)))
        return list(found.values())

    def _note(self, place: str, rule: Rule, message: str, action: Action, entry: Row | InputError) -> None:
        self.problems.append(Problem(place, rule, message, action, shortened(entry)))


def shortened(row: Row | InputError) -> str:
    """A row's beginning, as the list of what was left out shows it."""
    if isinstance(row, InputError):
        return ""
    try:
        return json.dumps(row, ensure_ascii=True, default=str)[:SHORTENED]
    except (ValueError, RecursionError, TypeError):
        return shown(row)[:SHORTENED]


def _rule_of(own: bool) -> Rule:
    return "special_tokens" if own else "foreign_marks"


def _turn_order(row: Row) -> RowProblem | None:
    """What is wrong with the order of turns of a prompt, if anything: the replies follow it in any case."""
    roles = [turn["role"] for turn in row.get("prompt", ())]
    for index, (before, role) in enumerate(pairwise(roles), 1):
        if role == "system" or (role == before and role != "tool"):
            seen = f"the {role}'s turn follows the {before}'s"
            rule = "turns alternate, after a system message at the beginning"
            return problem(f"prompt[{index}]", seen, rule, "join or reorder the turns", "turn_order")
    return None


def _still_speaking(row: Row) -> Row:
    for part in CONVERSATIONS:
        for index, turn in enumerate(row.get(part, ())):
            if "tool_calls" not in turn:
                text(turn["content"], f"{part}[{index}].content")
    return row


def _without_surrogates(value: Any) -> Any:
    """The value with U+FFFD in place of each half of a surrogate pair."""
    if isinstance(value, str):
        return "".join(_REPLACEMENT if "\ud800" <= character <= "\udfff" else character for character in value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(member) for key, member in value.items()}
    return [_without_surrogates(member) for member in value] if isinstance(value, list) else value


def _cut(row: Row, ends_with: tuple[str, ...]) -> Row:
    """The row with each conversation cut after its last turn of one of these roles; one without any stays."""
    return {name: _cut_turns(value, ("user", "tool") if name == "prompt" else ends_with) for name, value in row.items()}


def _cut_turns(value: Any, ends_with: tuple[str, ...]) -> Any:
    roles = [role_of(turn) for turn in value] if isinstance(value, list) else []
    ends = [index for index, role in enumerate(roles) if role in ends_with]
    return value[: ends[-1] + 1] if ends else value
