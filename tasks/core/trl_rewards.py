"""TRL's own reward functions as a recipe names them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import JsonValue

from models.errors import StageError
from models.rewards import Reward
from models.trl_options import SOLVED_BY_TRL
from tasks.core.verifiers.expected import answers


@dataclass(frozen=True)
class TRLFunction:
    """A function of `trl.rewards` with its options, given the row's first accepted answer as `solution`."""

    trl: str
    """Its name; one that begins with `get_` made the function from the options."""
    options: dict[str, JsonValue]
    """Keyword arguments that are the same for every completion."""
    column: str | None
    """The column with the accepted answers, where it compares with them."""
    function: Callable[..., list[float | None]] = field(compare=False)
    """What is called."""
    __name__: str
    """What figures call it."""

    def __call__(self, **given: Any) -> list[float | None]:
        """What each completion gets; none where there is nothing to compare it with.

        Args:
            given: Prompts, completions, completion_ids and every column of the rows, as TRL hands them over.
        """
        if self.column:
            given["solution"] = [answers(value, self.column)[0] for value in given[self.column]]
        return self.function(**given)


def trl_reward(reward: Reward) -> TRLFunction:
    """The function that a reward of kind `trl` names.

    Raises:
        StageError: TRL refuses its options.
    """
    name = str(reward.trl)
    column = reward.column if name in SOLVED_BY_TRL else None
    return TRLFunction(name, reward.options, column, _with_options(name, reward.options), reward.label)


def _with_options(name: str, options: dict[str, Any]) -> Callable[..., list[float | None]]:
    import trl.rewards

    named: Callable[..., Any] = getattr(trl.rewards, name)
    try:
        return named(**options) if name.startswith("get_") else partial(named, **options)
    except (TypeError, ValueError) as error:
        raise StageError(f"grpo.rewards: {name} refuses its options: {error}; change them") from error
