"""A reward model from elsewhere, known by what decides its content."""

from typing import Any, ClassVar

from models.artifacts import Precision
from models.stages import Request


class ScorerInput(Request):
    """A reward model that was trained elsewhere, and the precision to keep it in."""

    code_version: ClassVar[int] = 1

    origin: dict[str, str]
    """What pins its content: digests of files, or hub id and commit."""
    precision: Precision
    """Number format of the converted weights."""

    def identity(self) -> dict[str, Any]:
        """What decides the converted model, as JSON data."""
        return {
            "stage": "reward",
            "code_version": self.code_version,
            "origin": self.origin,
            "precision": self.precision,
        }
