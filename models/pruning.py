"""What pruning an artifact root would do, folder by folder."""

from pathlib import Path
from typing import Literal

from models.artifacts import Kind
from models.contract import Contract

Action = Literal["keep", "drop weights", "remove"]
What = Literal["base", "dataset", "checkpoint", "evaluation", "unfinished", "damaged", "replaced"]


class PruneItem(Contract):
    """One folder of the artifact root."""

    path: Path
    """The folder."""
    what: What
    """What it holds, or why it was moved aside."""
    kind: Kind
    """Kind of the folder that it is, was, or was going to be."""
    action: Action
    """What becomes of it; `drop weights`: its merged weights go, which adapter and parent give back."""
    why: str
    """Why it stays, or why nobody needs it."""
    size_bytes: int
    """What it takes now."""
    frees_bytes: int = 0
    """What would be free afterwards."""


class PrunePlan(Contract):
    """Every folder of an artifact root with what becomes of it."""

    items: tuple[PruneItem, ...]

    @property
    def frees_bytes(self) -> int:
        """What would be free afterwards."""
        return sum(item.frees_bytes for item in self.items)
