"""Figures of one model on the held-out rows, each with its 95 % interval."""

from collections.abc import Iterator

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
    """A held-out prompt, the model's greedy reply, and all that was measured of it."""

    prompt: str
    """Text of the last user turn."""
    context: str = ""
    """What was said before it, system message included, a line a turn: `user: …`."""
    reply: str
    """The reply, without special tokens."""
    answer: tuple[str, ...]
    """Accepted answers."""
    correct: bool
    """Whether the verifier accepts the reply."""
    kind: str
    """The row's kind."""
    sampled_reward: float | None = None
    """Mean verifiable reward of replies sampled at temperature 1."""
    reward_score: float | None = None
    """The reward model's score of the reply."""
    tokens: int = 0
    """Tokens of the reply, the end-of-sequence token left out."""
    stopped: bool = True
    """Whether the reply ended by itself, before the limit."""
    repetition: float = 0.0
    """Share of the reply's groups of three tokens that have occurred in it before."""
    answer_nll: float | None = None
    """Negative log-likelihood of the first accepted answer as a reply, in nats."""
    answer_tokens: int = 0
    """Tokens of that answer, the end of its turn included."""
    kl: float | None = None
    """Divergence of the model's next-token distribution from its parent's, in nats, summed over the reply's tokens."""


class PairScores(Contract):
    """How high a model puts the two sides of a preference pair."""

    kind: str
    """The pair's kind."""
    chosen: float
    """Of the chosen side: log-probability given the prompt (policy) or score (reward model)."""
    rejected: float
    """Of the rejected side."""
    parent_margin: float | None = None
    """The same difference, chosen less rejected, for the model that the policy was trained from."""

    @property
    def margin(self) -> float:
        """Chosen less rejected; the pair is ranked rightly where it is above 0."""
        return self.chosen - self.rejected


class HeldOutFigures(Contract):
    """What some model does on a set of held-out rows. Measures that do not apply to it are missing."""

    exact_match: Estimate | None = None
    """Share of prompts whose greedy reply the verifier accepts."""
    exact_match_by_kind: dict[str, Estimate] = {}
    """The same for each kind of row."""
    sampled_reward: Estimate | None = None
    """Mean verifiable reward of replies sampled at temperature 1; the interval is over prompts."""
    reward_score: Estimate | None = None
    """Mean score that the run's reward model gives to the greedy replies."""
    preference_accuracy: Estimate | None = None
    """Share of pairs whose chosen side scores higher: by log-probability (policy) or by reward (reward model)."""
    preference_accuracy_by_kind: dict[str, Estimate] = {}
    """The same for each kind of pair."""
    implicit_accuracy: Estimate | None = None
    """Share of pairs whose chosen side has gained more log-probability on its parent than the rejected one: accuracy of
    the policy's implicit reward (Rafailov et al. 2023, section 4)."""
    loss: Estimate | None = None
    """Negative log-likelihood of the first accepted answer, in nats a token."""
    perplexity: Estimate | None = None
    """Exponential of the loss."""
    kl: Estimate | None = None
    """Divergence from the parent on the model's own greedy replies, in nats a token."""
    length: Estimate | None = None
    """Mean tokens of a greedy reply."""
    repetition: Estimate | None = None
    """Mean share of a greedy reply's groups of three tokens that have occurred in it before."""
    unstopped: Estimate | None = None
    """Share of greedy replies that reach the longest length without ending."""
    samples: tuple[Sample, ...] = ()
    """Every held-out prompt with its greedy reply."""
    pairs: tuple[PairScores, ...] = ()
    """Every held-out pair."""
    sets: dict[str, "HeldOutFigures"] = {}
    """The same on the recipe's further sets, by name."""
    harness: dict[str, Estimate] = {}
    """Figures of lm-evaluation-harness, as `task metric`."""
    seconds: float = 0.0
    """Wall time of the evaluation."""

    def estimates(self) -> dict[str, Estimate]:
        """Every figure by name: of one kind of row as `exact_match/<kind>`, of a further set as `<set>: <figure>`."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, Estimate]]:
        figures = {name: getattr(self, name) for name in type(self).model_fields}
        yield from ((name, figure) for name, figure in figures.items() if isinstance(figure, Estimate))
        for name in ("exact_match", "preference_accuracy"):
            yield from ((f"{name}/{kind}", figure) for kind, figure in figures[f"{name}_by_kind"].items())
        for name, further in self.sets.items():
            yield from ((f"{name}: {inner}", figure) for inner, figure in further.estimates().items())
        yield from self.harness.items()


class EvaluationResult(HeldOutFigures):
    """What one model does on the held-out rows."""

    checkpoint: Checkpoint
    """The model judged."""
