"""Where a stage stands, for whoever wants to show it: the terminal, the Prefect UI, a test."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.alarms import Alarm
from models.contract import Contract


class Progress(Contract):
    """One report of a running stage."""

    stage: str
    """Name of what is being made: `sft-0123456789abcdef`."""
    phase: str
    """What is going on: `training`, `merging`, `waiting for …`, `cached`, `completed`, `failed: …` or `stopped …`."""
    step: int = 0
    """Steps done."""
    total_steps: int = 0
    """Steps in all; 0: unknown."""
    metrics: dict[str, float] = {}
    """Latest figures, such as `loss`, `learning_rate`, `reward`."""
    seconds_left: float | None = None
    """Estimate from the speed so far."""
    alarm: Alarm | None = None
    """An alarm that was raised just now."""


Listener = Callable[[Progress], None]
_listeners: list[Listener] = []
_SECONDS_BETWEEN_COUNTS = 3.0


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every report of this process's stages, from any thread, while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(progress: Progress) -> None:
    """Hand a report to all listeners."""
    for listener in tuple(_listeners):
        listener(progress)


def sparingly(tell: Callable[[int], None]) -> Callable[[int], None]:
    """What tells of a count that grows, but not at once and not each time."""
    told = time.monotonic()

    def listen(count: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _SECONDS_BETWEEN_COUNTS:
            told = time.monotonic()
            tell(count)

    return listen
