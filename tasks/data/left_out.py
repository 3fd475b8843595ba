"""What the data rules found in a source: counts, examples, and a list of the rows that were left out or mended."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from models.data_rules import Action, DataRules, Rule
from models.preparation import RuleCount
from tasks.data.cleaning import Problem

LEFT_OUT = "dropped.jsonl"
"""Name of the list: place, rule, action, reason and the row's beginning."""
SHOWN_EXAMPLES = 3
_FREE = ("duplicate", "tie")
"""Rules by which any number of rows may be left out."""


class Findings:
    """Takes problems as they come."""

    def __init__(self, folder: Path, rules: DataRules) -> None:
        """Nothing was found yet.

        Args:
            folder: Where the list is written, if there is anything to list.
            rules: Says how many rows may be left out.
        """
        self._file, self._rules = folder / LEFT_OUT, rules
        self._counts: Counter[tuple[Rule, Action]] = Counter()
        self._examples: dict[tuple[Rule, Action], list[Problem]] = {}
        self.whole: list[Problem] = []
        """What is wrong with files as a whole."""

    def note(self, *problems: Problem) -> None:
        """Count problems, keep the first of each kind, and list the rows that are left out or mended."""
        listed = [problem for problem in problems if problem.action in ("drop", "fix")]
        for problem in problems:
            if not problem.place and problem.action == "error":
                self.whole.append(problem)
                continue
            kind = (problem.rule, problem.action)
            self._counts[kind] += 1
            if self._counts[kind] <= SHOWN_EXAMPLES:
                self._examples.setdefault(kind, []).append(problem)
        if listed:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.writelines(_line(problem) for problem in listed)

    @property
    def counts(self) -> tuple[RuleCount, ...]:
        """What was found, most rows first."""
        return tuple(
            RuleCount(rule=rule, action=action, rows=rows, examples=tuple(map(str, self._examples[rule, action])))
            for (rule, action), rows in self._counts.most_common()
        )

    def add(self, other: "Findings") -> None:
        """Take over what was found in another source."""
        self._counts.update(other._counts)
        for kind, examples in other._examples.items():
            self._examples[kind] = [*self._examples.get(kind, []), *examples][:SHOWN_EXAMPLES]
        if other._file.exists():
            with self._file.open("ab") as stream:
                stream.write(other._file.read_bytes())

    def refusal(self, read: int) -> str:
        """Why the run ends: files that cannot be read, rows that must not be there, or too many left out; or nothing.

        Args:
            read: Rows looked at.
        """
        errors = [each for each in self.counts if each.action == "error"]
        dropped = [each for each in self.counts if each.action == "drop" and each.rule not in _FREE]
        many = sum(each.rows for each in dropped) > self._rules.max_dropped * read
        ending = errors + (dropped if many else [])
        count = sum(each.rows for each in ending) + len(self.whole)
        if not count:
            return ""
        shown = [*map(str, self.whole), *(example for each in ending for example in each.examples)]
        return "\n".join([*shown, *_told(ending, count - len(shown), read), *self._limit(dropped, errors, read)])

    def _limit(self, dropped: list[RuleCount], errors: list[RuleCount], read: int) -> list[str]:
        rows = sum(each.rows for each in dropped)
        if errors or self.whole or not rows or rows == 1 or read < 1 / max(self._rules.max_dropped, 1e-9):
            return []
        share = f"{rows} of {read} rows ({rows / read:.0%}) would be dropped"
        rule = f"more than data_rules.max_dropped {self._rules.max_dropped:g}"
        return [f"{share}, {rule}; correct the rows or their mapping (columns: …), or raise it"]


def merged(parts: Iterable[Findings], folder: Path) -> Findings:
    """What was found in several sources, in one list."""
    whole = Findings(folder, DataRules())
    for part in parts:
        whole.add(part)
    return whole


def _told(ending: list[RuleCount], further: int, read: int) -> list[str]:
    told = [f"… and {further} further problem{'s' if further > 1 else ''} in {read} rows"] if further > 0 else []
    kinds = ", ".join(f"{each.rule} {each.rows}" for each in ending)
    return [*told, f"by rule: {kinds}"] if len(ending) > 1 else told


def _line(problem: Problem) -> str:
    listed = {
        "place": problem.place,
        "rule": problem.rule,
        "action": problem.action,
        "reason": problem.message,
        "row": problem.row,
    }
    return json.dumps(listed, ensure_ascii=True) + "\n"
