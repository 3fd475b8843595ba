"""What machines that train together leave for one another in the artifact root that they share."""

from pathlib import Path
from typing import Any, Literal

from models.artifacts import TrainingStage
from models.contract import Contract

Ended = Literal["", "returned", "input", "out_of_memory", "killed", "disk_full", "stopped", "stage"]
"""How a machine's part of an attempt ended; empty: it has not."""


class Announcement(Contract):
    """`<name>.json`: an attempt at a stage that machine 0 makes, and that the others are to take part in."""

    attempt: str
    """Identifier that no other attempt has."""
    name: str
    """Name of the checkpoint: `sft-0123456789abcdef`."""
    run: str
    """Name of the run that it belongs to."""
    kind: TrainingStage
    """The stage, whose door in `tasks.core.entry` every process goes through."""
    stage: dict[str, Any]
    """The stage's input, as JSON data."""
    plan: dict[str, Any]
    """The plan of the attempt, as JSON data."""
    workspace: Path
    """The unfinished checkpoint's folder."""
    facts: dict[str, Any]
    """What all machines must have in common, by the name that users know it by."""


class Sign(Contract):
    """`<name>.<machine>.json`: a sign of life of a machine that takes part in an attempt."""

    attempt: str
    """The attempt."""
    moment: float
    """Seconds by the machine's own clock; only that it changes counts."""
    ended: Ended = ""
    """How the machine's part ended."""
    message: str = ""
    """Why, where it failed."""


class Post(Contract):
    """Where a machine looks for signs of the others, and leaves its own."""

    folder: Path
    """Where announcements and signs lie."""
    name: str
    """Name of the checkpoint."""
    attempt: str
    """The attempt that it takes part in."""
    machine: int
    """Its number."""
    machines: int
    """How many there are."""
