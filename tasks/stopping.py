"""What signals do to a run: its training processes save a checkpoint and end, and the record says why.

Without it a flow that is told to stop would wait for its stages to train to the end, and what a worker has started
would outlive it.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from tasks.child import stop_all
from tasks.child_main import signal_on_death_of
from tasks.closing import SIGNALS, closing

_SECONDS_TO_TELL = 5
_parent = os.getppid()

Handler = Callable[[int, FrameType | None], Any]
_end: list[Handler] = []


def end_by(handler: Handler | None) -> None:
    """What a signal does in the end, in place of what Prefect would: a command knows best how to leave."""
    _end[:] = [handler] if handler else []


def stop_stages_on_signals(close: Callable[[str], bool], flow_run: str) -> None:
    """On SIGINT, SIGTERM and SIGHUP, end the training processes and note it, before whatever else the signal does.

    Signals belong to the main thread; a flow that runs in another one is left alone. An ignored signal stays ignored.

    Args:
        close: Notes in the run's record that it was stopped, and why; returns whether it was still running.
        flow_run: Prefect's id of the run.
    """
    closing.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        previous = signal.getsignal(number)
        if isinstance(previous, _Stop):  # of an earlier run of this process
            previous = previous.previous
        if previous is not signal.SIG_IGN:
            signal.signal(number, _Stop(close, flow_run, previous))
    if _by_worker():  # which says no word when it is killed
        signal_on_death_of(_parent, signal.SIGTERM)


@dataclass(frozen=True)
class _Stop:
    """Signal handler."""

    close: Callable[[str], bool]
    flow_run: str
    previous: Any
    """What handled the signal before, and goes on with it."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._end_stages(number)
        finally:
            self._go_on(number, frame)

    def _end_stages(self, number: int) -> None:
        stop_all()
        reason = f"stopped by {signal.Signals(number).name}"
        was_running = False
        with suppress(Exception):  # a full disk, say: the process ends all the same
            was_running = self.close(reason)
        if was_running and PREFECT_API_URL.value() and not _by_worker():  # a worker tells the API itself
            telling = threading.Thread(target=_tell_api, args=(self.flow_run, reason), daemon=True)
            telling.start()
            telling.join(_SECONDS_TO_TELL)

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        handler = next(iter(_end), self.previous)
        if callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _tell_api(flow_run: str, reason: str) -> None:
    """Show the run as cancelled; where nobody answers, its record in the artifact root says it."""
    with suppress(Exception), get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run), Cancelled(message=reason), force=True)


def _by_worker() -> bool:
    return "PREFECT__FLOW_RUN_ID" in os.environ
