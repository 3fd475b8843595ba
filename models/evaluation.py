"""Figures of one model on the held-out rows, each with its 95 % interval."""

from models.artifacts import Checkpoint
from models.contract import Contract


class Estimate(Contract):
    """A mean with its 95 % confidence interval."""

    value: float
    """The mean."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of independent rows behind it."""

    def __str__(self) -> str:
        """As people quote it: `0.41 [0.32, 0.51]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Sample(Contract):
    """A held-out prompt and the model's greedy reply."""

    prompt: str
    """Text of the last user turn."""
    reply: str
    """The reply, without special tokens."""
    answer: tuple[str, ...]
    """Accepted answers."""
    correct: bool
    """Whether the verifier accepts the reply."""
    kind: str
    """The row's kind."""


class HeldOutFigures(Contract):
    """What some model does on the held-out rows. Measures that do not apply to it are missing."""

    exact_match: Estimate | None = None
    """Share of prompts whose greedy reply the verifier accepts."""
    exact_match_by_kind: dict[str, Estimate] = {}
    """The same for each kind of row."""
    sampled_reward: Estimate | None = None
    """Mean verifiable reward of replies sampled at temperature 1; the interval is over prompts."""
    preference_accuracy: Estimate | None = None
    """Share of pairs whose chosen side scores higher: by log-probability (policy) or by reward (reward model)."""
    preference_accuracy_by_kind: dict[str, Estimate] = {}
    """The same for each kind of pair."""
    samples: tuple[Sample, ...] = ()
    """Every held-out prompt with its greedy reply."""
    seconds: float = 0.0
    """Wall time of the evaluation."""

    def estimates(self) -> dict[str, Estimate]:
        """Every figure by name; those of one kind of row as `exact_match/<kind>`."""
        overall = {
            "exact_match": self.exact_match,
            "sampled_reward": self.sampled_reward,
            "preference_accuracy": self.preference_accuracy,
        }
        by_kind = {f"exact_match/{kind}": figure for kind, figure in self.exact_match_by_kind.items()}
        by_kind |= {f"preference_accuracy/{kind}": figure for kind, figure in self.preference_accuracy_by_kind.items()}
        return {name: figure for name, figure in overall.items() if figure} | by_kind


class EvaluationResult(HeldOutFigures):
    """What one model does on the held-out rows."""

    checkpoint: Checkpoint
    """The model judged."""
