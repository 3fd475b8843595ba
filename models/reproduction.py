"""Whether training again, from a manifest alone, gave the same weights."""

from typing import Literal

from models.contract import Contract

Verdict = Literal["same", "different", "not compared"]


class StageReproduction(Contract):
    """One checkpoint of an ancestry, trained again."""

    name: str
    """Name of the checkpoint."""
    verdict: Verdict
    """`same`: every byte of the weights agrees; `not compared`: those recorded are gone, from the remote too."""
    relative_difference: float | None = None
    """Norm of the difference of the weights, relative to the recorded ones; none: not compared."""
    changes: tuple[str, ...] = ()
    """What was not as it was when the checkpoint was made: library versions, device, threads, commit."""
    seconds: float = 0.0
    """Time that training took."""


class Reproduction(Contract):
    """What came of training a checkpoint again."""

    checkpoint: str
    """Its name."""
    stages: tuple[StageReproduction, ...]
    """Every training stage of its ancestry in order, itself last."""

    @property
    def same(self) -> bool:
        """Whether the checkpoint's own weights came out the same."""
        return self.stages[-1].verdict == "same"
