"""How much memory a process and all that it has started hold together."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

import psutil

_SECONDS_BETWEEN = 0.5


@dataclass
class Peak:
    """The most that was seen so far."""

    rss_bytes: int = 0
    """Pages of each process."""
    pss_bytes: int = 0
    """Pages that several share counted once."""


@contextmanager
def watched(process: int) -> Iterator[Peak]:
    """While this is open, look twice a second, until the process ends."""
    peak = Peak()
    watching = Thread(target=_watch, args=(process, peak), daemon=True)
    watching.start()
    yield peak
    watching.join(timeout=2 * _SECONDS_BETWEEN)


def _watch(process: int, peak: Peak) -> None:
    while psutil.pid_exists(process):
        try:
            family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
            held = [each.memory_full_info() for each in family]
        except (psutil.NoSuchProcess, psutil.ZombieProcess):  # one of them ended meanwhile
            held = []
        peak.rss_bytes = max(peak.rss_bytes, sum(each.rss for each in held))
        peak.pss_bytes = max(peak.pss_bytes, sum(each.pss for each in held))
        time.sleep(_SECONDS_BETWEEN)
