"""Models held against one another: a table of paired differences in words, and who wins against whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.comparison import Comparison, Difference, Verdict
from models.evaluation import Estimate, EvaluationResult
from tasks.comparing import win_rate
from tasks.reporting.words import measure_name

_MARKS: dict[Verdict, str] = {"better": "✓ ", "worse": "✗ ", "unclear": ""}


@dataclass(frozen=True)
class DifferenceRow:
    """One measure of a model against another's."""

    name: str
    before: str
    after: str
    change: str
    """With its 95 % interval."""
    verdict: Verdict
    said: str
    """The verdict as readers see it."""
    is_kind: bool
    """Whether it is one kind of row out of the measure above."""


@dataclass(frozen=True)
class Contrast:
    """A comparison as a table."""

    title: str
    rows: list[DifferenceRow]
    wins: str
    """How often the model's reply is put above the other's, in a sentence; empty where nobody said."""


def contrast(comparison: Comparison, model: str, against: str) -> Contrast:
    """A comparison as a table, with the models under the names that readers know."""
    rows = [_row(one) for one in comparison.differences]
    wins = [
        f"{judge} puts its reply above the other one on {_percent(rate)} of {rate.n} prompts"
        for judge, rate in (("The reward model", comparison.win_rate), ("The judge", comparison.judged_win_rate))
        if rate
    ]
    silent = comparison.judge_failures
    wins += [f"the judge gave no verdict on {silent} prompts"] if silent else []
    return Contrast(f"{model} against {against}", rows, "; ".join(wins) + "." if wins else "")


def _row(one: Difference) -> DifferenceRow:
    change = one.change
    return DifferenceRow(
        name=measure_name(one.measure),
        before=f"{one.before:.3g}",
        after=f"{one.after:.3g}",
        change=f"{change.value:+.3g} [{change.low:+.3g}, {change.high:+.3g}]",
        verdict=one.verdict,
        said=_MARKS[one.verdict] + one.said,
        is_kind="/" in one.measure,
    )


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


@dataclass(frozen=True)
class Win:
    """How often the model of a row beats that of a column."""

    share: float
    """0 to 1."""
    said: str
    """In per cent."""
    interval: str


@dataclass(frozen=True)
class WinMatrix:
    """How often each model's reply beats each other one's, by the reward model's score."""

    names: list[str]
    rows: list[list[Win | None]]


def win_matrix(results: Sequence[EvaluationResult], names: Sequence[str]) -> WinMatrix | None:
    """Every model against every other one; nothing where no reward model has scored the replies of two."""
    scored = [(name, result) for name, result in zip(names, results, strict=True) if result.reward_score]
    if len(scored) < 2:
        return None
    rows = [[_win(ours, theirs) if ours is not theirs else None for _, theirs in scored] for _, ours in scored]
    return WinMatrix([name for name, _ in scored], rows)


def _win(ours: EvaluationResult, theirs: EvaluationResult) -> Win | None:
    rate = win_rate(ours.samples, theirs.samples)
    if not rate:
        return None
    return Win(rate.value, f"{100 * rate.value:.0f} %", f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]")
