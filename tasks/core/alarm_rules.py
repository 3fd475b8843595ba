"""The rules of the alarms: which figure of a trainer's log is held against which threshold, and what that means.

The keys are those of Transformers and TRL.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any, Literal

from models.alarms import AlarmName
from models.artifacts import Stage
from models.recipe import DPO, GRPO
from models.stages import TrainingInput

ALL: tuple[Stage, ...] = ("sft", "reward", "dpo", "grpo")


class Log:
    """The finite figures of a log so far, and their means over windows of entries.

    Args:
        stage: What is trained.
        reward_names: GRPO's name of each reward in the log, in the recipe's order.
    """

    def __init__(self, stage: TrainingInput, reward_names: Sequence[str]) -> None:
        self.stage = stage
        self.reward_names = reward_names
        self.window = stage.alarms.window
        self._series: dict[str, list[float]] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take up the next entry; what is no finite number is left out."""
        for key, value in entry.items():
            if isinstance(value, int | float) and isfinite(value):
                self._series.setdefault(key, []).append(value)

    def last(self, key: str, summary: Callable[[list[float]], float] = fmean) -> float | None:
        """The mean, or another summary, of the last window; none before a window is full."""
        values = self._series.get(key, [])
        return summary(values[-self.window :]) if len(values) >= self.window else None

    def first(self, key: str) -> float | None:
        """The mean of the first window; none before it is full."""
        values = self._series.get(key, [])
        return fmean(values[: self.window]) if len(values) >= self.window else None


Measure = Callable[[Log], float | None]


@dataclass(frozen=True)
class Rule:
    """When an alarm is raised, and what it says."""

    stages: tuple[Stage, ...]
    """Stages that it is about."""
    measure: Measure
    """The figure; none: there is none yet."""
    bound: Literal["more than", "at least", "at most", "less than"]
    """How the figure stands to the threshold where the alarm is raised."""
    seen: str
    """What was seen, with places for `value`, for `window` and for `limit`, the threshold."""
    remedy: str
    """What to try."""
    unless: Measure | None = None
    """A figure that was not beyond the threshold already."""
    at_end: bool = False
    """Whether only the end of the training tells."""

    def is_beyond(self, value: float, threshold: float) -> bool:
        """Whether a figure, held against the threshold, raises the alarm."""
        if value == threshold:
            return self.bound in ("at least", "at most")
        return (value > threshold) == (self.bound in ("more than", "at least"))


def _last(key: str) -> Measure:
    return lambda log: log.last(key)


def _first(key: str) -> Measure:
    return lambda log: log.first(key)


def _largest_gradient(log: Log) -> float | None:
    return log.last("grad_norm", max)


def _growth_of_length(log: Log) -> float | None:
    """Mean length of completions as a multiple of the first window's."""
    first, last = log.first("completions/mean_length"), log.last("completions/mean_length")
    return last / first if first and last is not None else None


def _fall_of_chosen(log: Log) -> float | None:
    """How far the chosen answers are below the reference, in nats an answer.

    TRL logs the change against the reference times beta. Unlike the log-probability itself, that does not depend on how
    long the answers of a batch are.
    """
    reward, asked = log.last("rewards/chosen"), log.stage.hyperparameters
    return -reward / asked.beta if reward is not None and isinstance(asked, DPO) else None


def _hacking(log: Log) -> float | None:
    """By how many standard deviations a reward model's term rose and a verifiable one fell: the smaller of the two."""
    asked = log.stage.hyperparameters
    terms = asked.rewards if isinstance(asked, GRPO) and log.reward_names else ()
    rises, falls = [], []
    for term, name in zip(terms, log.reward_names, strict=True):
        gain = _gain(log, name, term.weight)
        if gain is not None and term.kind == "reward_model":
            rises.append(gain)
        elif gain is not None:
            falls.append(-gain)
    return min(max(rises), max(falls)) if rises and falls else None


def _gain(log: Log, name: str, weight: float) -> float | None:
    """Change of a reward's mean towards what its weight asks for, in standard deviations over completions."""
    first, last = log.first(f"rewards/{name}/mean"), log.last(f"rewards/{name}/mean")
    spread = max(log.first(f"rewards/{name}/std") or 0.0, log.last(f"rewards/{name}/std") or 0.0)
    if first is None or last is None or not spread:
        return None
    return (last - first) / spread * (-1 if weight < 0 else 1)


RULES: dict[AlarmName, Rule] = {
    "gradient_zero": Rule(
        ALL,
        _largest_gradient,
        "at most",
        "no gradient norm of the last {window} logged steps was above {value:.2g} ({limit}): nothing is learned",
        "see that rows have something to learn, that rewards differ, and that what trains is not frozen",
    ),
    "gradient_exploding": Rule(
        ALL,
        _last("grad_norm"),
        "more than",
        "the gradient's mean norm before clipping was {value:.3g} over the last {window} logged steps ({limit})",
        "lower learning_rate, raise warmup_ratio or batch_size, and look for broken rows",
    ),
    "no_reward_spread": Rule(
        ("grpo",),
        _last("frac_reward_zero_std"),
        "more than",
        "in {value:.0%} of the groups of the last {window} logged steps all completions got the same reward ({limit}): "
        "nothing is learned from those",
        "take prompts that are neither too easy nor too hard, a reward with more grades, a higher temperature, or more "
        "num_generations",
    ),
    "clipped_completions": Rule(
        ("grpo",),
        _last("completions/clipped_ratio"),
        "more than",
        "{value:.0%} of the completions of the last {window} logged steps were cut off before they ended ({limit}), so "
        "that what is rewarded is not a whole reply",
        "raise max_completion_length, or teach shorter replies that end in SFT",
    ),
    "length_exploding": Rule(
        ("grpo",),
        _growth_of_length,
        "more than",
        "completions of the last {window} logged steps are {value:.3g} times as long as the first ones ({limit})",
        "see whether a reward favours length, add a reward of kind length, or raise beta",
    ),
    "length_collapsing": Rule(
        ("grpo",),
        _growth_of_length,
        "less than",
        "completions of the last {window} logged steps are {value:.2g} times as long as the first ones ({limit})",
        "see whether a reward is had by saying little, lower learning_rate, or raise beta",
    ),
    "kl_high": Rule(
        ("grpo",),
        _last("kl"),
        "more than",
        "the policy is {value:.3g} nats a token from its reference over the last {window} logged steps ({limit})",
        "raise beta, lower learning_rate, or train fewer steps",
    ),
    "entropy_collapsed": Rule(
        ("grpo",),
        _last("entropy"),
        "less than",
        "the next token's entropy fell to {value:.2g} nats over the last {window} logged steps ({limit}): completions "
        "are much alike and little new is tried",
        "raise temperature or beta, or lower learning_rate",
        unless=_first("entropy"),
    ),
    "chosen_logps_falling": Rule(
        ("dpo",),
        _fall_of_chosen,
        "more than",
        "chosen answers are {value:.3g} nats an answer less likely than to the reference over the last {window} logged "
        "steps ({limit}): margins grow by unlearning both sides",
        "add sft_weight, raise beta, or lower learning_rate",
    ),
    "reward_accuracy_at_chance": Rule(
        ("reward",),
        _last("accuracy"),
        "less than",
        "{value:.0%} of the pairs of the last {window} logged steps were ranked rightly ({limit}; chance is 0.5)",
        "train longer, raise learning_rate, or take clearer pairs; a reward model at chance teaches GRPO nothing",
        at_end=True,
    ),
    "reward_hacking": Rule(
        ("grpo",),
        _hacking,
        "at least",
        "since the first {window} logged steps a reward model's reward has risen while a verifiable one has fallen, "
        "each by {value:.2g} standard deviations or more ({limit})",
        "lower the weight of reward_model, raise beta, stop earlier, or train the reward model on such replies",
    ),
}
"""Every alarm with a threshold."""
