"""The gate: what the last policy must show before it may be promoted."""

from typing import Annotated

from pydantic import Field, model_validator

from models.contract import Contract


class Better(Contract):
    """The last policy must beat another model by a measure."""

    measure: str = Field("exact_match", min_length=1, title="Measure")
    """A figure that is compared row by row and has a better side: `exact_match`, `sampled_reward`, `reward_score`,
    `preference_accuracy`, `loss`, `repetition`, `unstopped`; of one kind of row `exact_match/<kind>`, of a further set
    `<set>: exact_match`; or `win_rate`, `judged_win_rate`."""
    than: str = Field("parent", min_length=1, title="Than")
    """`parent`: the model that the last stage started from; `base`; or an alias, such as `champion`."""
    by: Annotated[float, Field(ge=0)] = Field(0.0, title="By at least")
    """How much better, in the measure's own unit; for `win_rate`, above one half."""
    surely: bool = Field(True, title="Surely")
    """Whether the whole 95 % interval of the difference must be above that; otherwise its middle."""


class NoWorse(Contract):
    """The last policy must not lose more than a little by a measure."""

    measure: str = Field(min_length=1, title="Measure")
    """Name of a figure; `*`: every one that has a better side."""
    than: str = Field("parent", min_length=1, title="Than")
    """`parent`: the model that the last stage started from; `base`; or an alias, as for `better`."""
    by: Annotated[float, Field(ge=0)] = Field(0.0, title="By more than")
    """The loss that is tolerated, in the measure's own unit; more, beyond what chance explains, closes the gate."""


class Gate(Contract):
    """Conditions that must all hold. Where an alias does not exist yet, what compares with it holds."""

    better: tuple[Better, ...] = Field((), title="Better")
    """What the last policy must do better than another model."""
    no_worse: tuple[NoWorse, ...] = Field((), title="No worse")
    """What the last policy must not do much worse than another model."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Gate":
        if not (self.better or self.no_worse):
            raise ValueError("a gate without conditions lets everything pass; add better or no_worse, or remove it")
        return self

    @property
    def conditions(self) -> tuple[Better | NoWorse, ...]:
        """All of them."""
        return *self.better, *self.no_worse

    @property
    def rivals(self) -> tuple[str, ...]:
        """Everything that the conditions compare with: `parent`, `base`, aliases."""
        return tuple(dict.fromkeys(condition.than for condition in self.conditions))


class ConditionResult(Contract):
    """What became of one condition."""

    condition: str
    """The condition in words: `exact_match better than parent by at least 0.02`."""
    passed: bool
    """Whether it holds."""
    found: str
    """What was measured, in words."""


class GateResult(Contract):
    """Whether a checkpoint may be promoted."""

    checkpoint: str
    """Name of the checkpoint that was judged."""
    passed: bool
    """Whether every condition holds."""
    conditions: tuple[ConditionResult, ...]
    """Each condition."""
