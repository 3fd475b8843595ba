"""Two models on the same held-out rows, row by row: what is better, what is worse, and what nobody can tell."""

from typing import Literal

from models.contract import Contract
from models.evaluation import Estimate

Verdict = Literal["better", "worse", "unclear"]


class Difference(Contract):
    """One measure of a model against another's on the same rows."""

    measure: str
    """Name of the figure."""
    before: float
    """The other model's."""
    after: float
    """The model's."""
    change: Estimate
    """After less before, with the 95 % interval of the paired difference; `n` rows stand behind it."""
    p_value: float | None = None
    """Of McNemar's exact test (1947), for shares; none where the interval is a bootstrap's."""
    verdict: Verdict
    """`unclear` where chance explains the difference, or the measure has no better side."""

    @property
    def said(self) -> str:
        """The verdict in words; `higher` or `lower` where that is sure, but neither better nor worse."""
        if self.verdict != "unclear":
            return self.verdict
        if self.change.low <= 0 <= self.change.high:
            return f"can't tell with {self.change.n} rows"
        return "higher" if self.change.low > 0 else "lower"

    def __str__(self) -> str:
        """In words: `better: +0.12 [+0.03, +0.21]`, `can't tell with 40 rows: +0.02 [-0.05, +0.09]`."""
        return f"{self.said}: {self.change.value:+.3g} [{self.change.low:+.3g}, {self.change.high:+.3g}]"


class Comparison(Contract):
    """A model held against another one."""

    model: str
    """Name of the checkpoint that is judged."""
    against: str
    """Name of the checkpoint that it is held against."""
    role: str
    """What that is to it: `parent`, `base`, an alias, or `other`."""
    differences: tuple[Difference, ...] = ()
    """Every measure that both have on the same rows."""
    win_rate: Estimate | None = None
    """Share of held-out prompts on which the run's reward model puts the model's reply above the other's; a tie is half
    a win."""
    judged_win_rate: Estimate | None = None
    """The same by the recipe's judge."""
    judge_failures: int = 0
    """Prompts that the judge gave no verdict on; left out."""

    def find(self, measure: str) -> Difference | None:
        """The difference in that measure."""
        return next((one for one in self.differences if one.measure == measure), None)
