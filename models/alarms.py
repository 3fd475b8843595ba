"""Alarms: signs, while a stage trains, that it learns nothing, breaks, or learns the wrong thing."""

from typing import Annotated, Literal

from pydantic import Field

from models.artifacts import Stage
from models.contract import Contract

AlarmName = Literal[
    "loss_not_finite",
    "gradient_zero",
    "gradient_exploding",
    "no_reward_spread",
    "clipped_completions",
    "length_exploding",
    "length_collapsing",
    "kl_high",
    "entropy_collapsed",
    "chosen_logps_falling",
    "reward_accuracy_at_chance",
    "reward_hacking",
]
Share = Annotated[float, Field(ge=0, le=1)]


class Alarms(Contract):
    """Thresholds of the alarms; none: that alarm is off. Means are taken over a window of logged steps."""

    window: int = Field(5, ge=1, title="Window in logged steps")
    """Logged steps whose mean is held against a threshold; nothing but a loss or a gradient that is not finite raises
    an alarm before it is full."""
    stop: tuple[AlarmName, ...] = Field(("loss_not_finite",), title="Alarms that stop")
    """Alarms that stop the stage; the others are shown and training goes on."""
    gradient_zero: float | None = Field(1e-8, ge=0, title="Smallest gradient norm")
    """All gradient norms of the window are at or below this."""
    gradient_exploding: float | None = Field(100.0, gt=0, title="Largest gradient norm")
    """The mean norm of the gradient, before clipping, is above this."""
    no_reward_spread: Share | None = Field(0.7, title="Groups without spread")
    """GRPO: share of groups whose completions all get the same reward, so that nothing is learned from them."""
    clipped_completions: Share | None = Field(0.5, title="Completions cut off")
    """GRPO: share of completions that reach the longest length without ending."""
    length_exploding: float | None = Field(3.0, gt=1, title="Length growth")
    """GRPO: mean length of completions, as a multiple of the first window's."""
    length_collapsing: Share | None = Field(0.2, title="Length left")
    """GRPO: mean length of completions, as a share of the first window's."""
    kl_high: float | None = Field(1.0, gt=0, title="Largest KL divergence")
    """GRPO with beta above 0: mean divergence from the reference, in nats a token."""
    entropy_collapsed: float | None = Field(0.02, ge=0, title="Smallest entropy")
    """GRPO: mean entropy of the next token, in nats, where it was above this in the first window."""
    chosen_logps_falling: float | None = Field(20.0, gt=0, title="Fall of chosen log-probabilities")
    """DPO: how far the chosen answers' mean log-probability falls below the reference's, in nats an answer."""
    reward_accuracy_at_chance: float | None = Field(0.55, ge=0.5, le=1, title="Least accuracy")
    """Reward model: mean accuracy on the batches' pairs over the training's last window: a share, chance is 0.5."""
    reward_hacking: float | None = Field(0.5, gt=0, title="Reward hacking")
    """GRPO with a reward model and a verifiable reward: since the first window the one has risen and the other has
    fallen, each by at least this many standard deviations of its own (over completions, in the wider of both
    windows)."""


class Alarm(Contract):
    """An alarm that was raised."""

    name: AlarmName
    """Which."""
    stage: Stage
    """The stage that it was raised in."""
    step: int
    """Optimizer step."""
    value: float | None = None
    """What was seen; none where it is not finite."""
    threshold: float | None = None
    """The recipe's threshold; none where there is none to set."""
    message: str
    """What was seen, the rule, and what to try, in a sentence or two."""
    stopped: bool = False
    """Whether it stopped the stage."""
