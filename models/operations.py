"""Operations: processes that were started to stay, and what a check of the installation found."""

from typing import Literal

from models.contract import Contract

Verdict = Literal["ok", "warning", "problem"]


class ServiceRecord(Contract):
    """A process that outlives the command that has started it."""

    pid: int
    """Its id, which another process may get once it has ended."""
    started: float
    """When it was started, in seconds since 1970, as the system tells it."""
    command: tuple[str, ...]
    """Its command line; it holds no secret."""


class Check(Contract):
    """What one check of the installation found."""

    name: str
    """What was looked at."""
    verdict: Verdict
    """`ok`; `warning`: it works, but not as it should; `problem`: something does not work."""
    seen: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where there is nothing to do."""
