"""Retraining: what became of the policy that it ends with, and what a person decided about it."""

from typing import Literal

from models.contract import Contract

Promotion = Literal["automatic", "approval", "never"]
"""What happens to a policy that passes its gate: the alias points to it, a person is asked, or nothing."""
Outcome = Literal["promoted", "held", "rejected", "gate_closed", "not_promoted"]
"""Where a policy stands: the alias points to it, a person is to decide, one has decided against it, its gate is closed,
or nobody was asked to promote it."""


class Retraining(Contract):
    """How a retraining ended."""

    outcome: Outcome
    """Where its last policy stands."""
    checkpoint: str
    """Name of that policy."""
    run: str
    """Name of the run that judged it."""
    unchanged: bool
    """Whether nothing was trained, judged or decided, since all of that had been done before."""
    message: str
    """Outcome and reason in a sentence."""


class Decision(Contract):
    """`decisions/<alias>/<checkpoint>.json`: whether an alias may point to a checkpoint, as a person sees it."""

    alias: str
    """The alias."""
    checkpoint: str
    """Name of the checkpoint that passed its gate."""
    run: str
    """Name of the run that judged it."""
    state: Literal["held", "approved", "rejected"]
    """`held`: nobody has decided yet."""
    rival: str | None = None
    """Name of the checkpoint that the alias pointed to when the question was put; none: there was no such alias."""
    asked: str
    """UTC time of the question, ISO 8601."""
    until: str
    """UTC time, ISO 8601, after which an open question lapses and the next retraining may put it again."""
    asking: str = ""
    """Prefect's id of the flow run that puts the question; empty where no deployment was there to do so."""
    decided: str | None = None
    """UTC time of the decision, ISO 8601."""
    by: str = ""
    """Who decided, as they call themselves."""
    reason: str = ""
    """Why, in their words."""
