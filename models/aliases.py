"""Aliases: names such as `champion` that people give to checkpoints, with the whole history of each."""

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from models.artifacts import Stage
from models.contract import Contract

ALIAS_LAYOUT = 1
"""Version of the layout of `aliases/<name>.json`; readers accept every version up to this one."""
CHAMPION = "champion"
"""The alias that is meant where none is named."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MEANT_OTHERWISE = ("parent",)
"""Words that a recipe's gate has another meaning for."""
_PREFIXES = [f"{stage}-" for stage in get_args(Stage)]
_FINGERPRINT = re.compile(rf"({'|'.join(_PREFIXES)})?[0-9a-f]*")


def alias_problem(name: str) -> str:
    """Why a text cannot be an alias; empty where it can."""
    if not _NAME.fullmatch(name):
        return "an alias has 1 to 64 lower-case letters, digits and dashes and does not begin with a dash"
    if name in _MEANT_OTHERWISE:
        return "a gate calls the model that a stage started from so; take another, such as 'champion'"
    if _FINGERPRINT.fullmatch(name) or any(prefix.startswith(name) for prefix in _PREFIXES):
        return "a stage, a fingerprint or a checkpoint's name may begin so; take another, such as 'champion'"
    return ""


class Promotion(Contract):
    """One time that an alias was pointed to a checkpoint."""

    kind: Literal["promotion", "rollback"] = "promotion"
    """Whether it went on to a checkpoint or back to the one before."""
    when: str
    """UTC time, ISO 8601."""
    checkpoint: str
    """Name of the folder that the alias points to from then on."""
    fingerprint: str
    """All 64 digits of its fingerprint."""
    previous: str | None = None
    """Name of the folder that it pointed to until then."""
    by: str = ""
    """Who did it, as they call themselves."""
    reason: str = ""
    """Why, in their words."""
    command: str = ""
    """The command that did it; empty where a flow run did."""
    flow_run: str = ""
    """Prefect's id of the flow run that did it."""
    gate: dict[str, Any] | None = None
    """What a gate found before it let the checkpoint pass; none: there was no gate."""


class Alias(Contract):
    """`aliases/<name>.json`."""

    schema_version: int = ALIAS_LAYOUT
    """Layout of this file."""
    name: str
    """The alias."""
    history: tuple[Promotion, ...] = Field(min_length=1)
    """Everything that it was pointed to, oldest first; the last entry is what it points to now."""

    @property
    def checkpoint(self) -> str:
        """Name of the folder that it points to."""
        return self.history[-1].checkpoint

    @property
    def before(self) -> Promotion | None:
        """The promotion that a rollback goes back to: the one before the current one that was not rolled back."""
        standing: list[Promotion] = []
        for entry in self.history:
            if entry.kind == "rollback":
                standing.pop()
            else:
                standing.append(entry)
        return standing[-2] if len(standing) > 1 else None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if problem := alias_problem(name):
            raise ValueError(problem)
        return name

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_known_layout(cls, content: Any) -> Any:
        layout = content.get("schema_version", 1) if isinstance(content, dict) else 1
        if isinstance(layout, int) and layout > ALIAS_LAYOUT:
            raise ValueError(f"layout {layout} is newer than this version reads")
        return content

    @model_validator(mode="after")
    def _hangs_together(self) -> "Alias":
        standing = 0
        for entry, earlier in zip(self.history, (None, *self.history), strict=False):
            standing += -1 if entry.kind == "rollback" else 1
            if standing < 1 or entry.previous != (earlier and earlier.checkpoint):
                raise ValueError(f"its history does not hang together at {entry.when}")
        return self
