"""When this process is to end: then nothing is started and nothing waited for any more."""

import ctypes
import os
import signal
import sys
import threading

from models.errors import Stopped

_PR_SET_PDEATHSIG = 1

closing = threading.Event()
"""Set when a signal says so; cleared by the next run of the same process."""


def stop_if_closing() -> None:
    """Raise where the process is to end.

    Raises:
        Stopped: it is.
    """
    if closing.is_set():
        raise Stopped("stopped on request")


def signal_on_death_of(parent: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent dies, or at once where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
