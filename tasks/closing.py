"""Whether this process is to end: then nothing is started and nothing waited for any more."""

import signal
import threading

from models.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that ask a process to end."""

closing = threading.Event()
"""Set when a signal says so; cleared by the next run of the same process."""


def stop_if_closing() -> None:
    """Raise where the process is to end.

    Raises:
        Stopped: it is.
    """
    if closing.is_set():
        raise Stopped("stopped on request")
