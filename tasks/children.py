"""The processes that `tasks.child` has started: what they say, how each of them ends, and what their ends mean for all.

Several processes that train together are one: where one of them fails or dies, the others soon fail for want of it, or
wait for it for ever. Of their ends the one is told that caused the others.
"""

import errno
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any

from models.errors import AlignError, InputError, Killed, OutOfMemory, StageError, Stopped
from tasks.child_main import Failure
from tasks.closing import closing
from tasks.machines import SECONDS_OF_SILENCE

_SECONDS_TO_EXIT = 20
_SECONDS_TO_FOLLOW = 3.0
"""In which the others of a group say why they end, before they are ended."""
_LINES_TO_TELL = 20
_SECONDS_TO_HEAR = SECONDS_OF_SILENCE + 5
"""In which machine 0 hears how the others' parts have ended, or that one is silent."""
COMPANION = -1
"""Number, in place of one in the group, of the process that keeps in touch with other machines."""
_CAUSES = ("out_of_memory", "killed", "disk_full", "input", "stage")
"""Ends of a process that are causes rather than consequences, the plainest first."""
_CONSEQUENCES = ("died", "stopped", "bug")
"""Ends whose cause may be another process, also of another machine; of several, the first is told."""
_ENDS = (*_CAUSES, *_CONSEQUENCES)

Message = tuple[str, Any, int]
"""Kind, value and peak memory in bytes."""


class Child:
    """One process of a group: what it says, and the last lines that it printed.

    Args:
        context: Starts it.
        serve: The child's side.
        call: What `serve` gets, but for the pipes; ends with the process's number on this machine, or `COMPANION`.
        on_line: Gets each line that the first process prints.
    """

    def __init__(
        self,
        context: ForkServerContext,
        serve: Callable[..., None],
        call: tuple[Any, ...],
        on_line: Callable[[str], None],
    ) -> None:
        self.is_first = call[-1] == 0
        self.is_companion = call[-1] == COMPANION
        self.hears_all = self.is_companion and call[1][0].machine == 0
        self.last_lines: deque[str] = deque(maxlen=_LINES_TO_TELL)
        self.events, child_events = context.Pipe(duplex=False)
        output, child_output = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(*call, (child_events, child_output)))
        self.process.start()
        child_events.close()
        child_output.close()
        heard = (output, on_line if self.is_first else None, self.last_lines)
        self._reader = threading.Thread(target=_read_lines, args=heard, daemon=True)
        self._reader.start()

    def receive(self) -> Message:
        """The next message; `died` or `killed` where none will come any more."""
        try:
            if self.events.poll():
                message: Message = self.events.recv()
                kind, value, peak = message
                return (value.kind, value, peak) if kind == "failed" else message
        except (EOFError, OSError):  # the end of the pipe, or amid a message
            pass
        self.process.join()
        self._reader.join(timeout=5)
        code = self.process.exitcode or 0
        return ("killed" if code == -signal.SIGKILL else "died"), code, 0

    def close(self) -> None:
        """Let go of what is left of a process that has ended."""
        self._reader.join(timeout=5)
        self.events.close()


class ChildFailed(Exception):
    """A process ended without a result.

    Args:
        child: The process.
        kind: How it ended, as in `Failure`; `killed`: by SIGKILL, `died`: without a word otherwise.
        value: The failure, or the exit code of one that said nothing.
    """

    def __init__(self, child: Child, kind: str, value: Any) -> None:
        super().__init__(kind, value)
        self.child = child
        self.kind = kind
        self.value = value
        self.peak_bytes = 0


def follow(
    children: Sequence[Child],
    on_report: Callable[[Any], None],
    on_peak: Callable[[int], None],
    timeout_seconds: float | None,
) -> Any:
    """Pass reports on until all have returned, or one has failed or died; a companion is not waited for.

    Returns:
        What the first process returned.

    Raises:
        ChildFailed: one ended without a result; where several did, the one that caused it.
        StageError: they took too long.
    """
    deadline = time.monotonic() + timeout_seconds if timeout_seconds else None
    running, result, highest = list(children), None, 0
    while any(not child.is_companion for child in running):
        remaining = max(0.0, deadline - time.monotonic()) if deadline else None
        ready = _ready(running, remaining)
        if not ready:
            raise StageError(f"stopped after {timeout_seconds:g} s; raise ALIGN_STAGE_TIMEOUT_SECONDS to allow more")
        for child in ready:
            kind, value, peak = child.receive()
            highest = max(highest, peak)
            on_peak(highest)
            if kind == "report":
                on_report(value)
            elif kind == "returned":
                running.remove(child)
                result = value if child.is_first else result
            elif kind in _ENDS:
                failure = _cause(ChildFailed(child, kind, value), [other for other in running if other is not child])
                failure.peak_bytes = highest
                raise failure
    for child in children:
        if not child.is_companion:
            child.process.join(timeout=_SECONDS_TO_EXIT)
    return result


def _ready(children: Sequence[Child], seconds: float | None) -> list[Child]:
    """Those that have said something or ended, within so many seconds."""
    found = wait([place for child in children for place in (child.events, child.process.sentinel)], seconds)
    return [child for child in children if child.events in found or child.process.sentinel in found]


def _cause(first: ChildFailed, others: list[Child]) -> ChildFailed:
    """The end that caused those of the other processes, which follow it soon; of other machines the companion tells."""
    hears = first.kind in _CONSEQUENCES and not closing.is_set() and any(child.hears_all for child in others)
    others = [child for child in others if hears or not child.is_companion]
    ends, deadline = [first], time.monotonic() + (_SECONDS_TO_HEAR if hears else _SECONDS_TO_FOLLOW)
    while others and (ready := _ready(others, max(0.0, deadline - time.monotonic()))):
        for child in ready:
            kind, value, _ = child.receive()
            if kind in _ENDS:
                ends.append(ChildFailed(child, kind, value))
            if kind in (*_ENDS, "returned"):
                others.remove(child)
                if child.is_companion:
                    deadline = time.monotonic() + _SECONDS_TO_FOLLOW
    return min(ends, key=lambda end: _CAUSES.index(end.kind) if end.kind in _CAUSES else len(_CAUSES))


def explain(failure: ChildFailed, kills_before: int | None, kills: int | None) -> AlignError | OSError:
    """What to tell the user of it.

    Args:
        failure: How the process ended.
        kills_before: Kills for want of memory that the kernel had noted when it began; none: it notes none.
        kills: Those that it has noted now.
    """
    if isinstance(failure.value, Failure):
        return _as_error(failure.value)
    if closing.is_set():
        return Stopped("stopped on request")
    if failure.kind == "killed":
        return _explain_kill(kills_before, kills, failure.peak_bytes)
    code = failure.value
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = "".join(f"\n  {line}" for line in failure.child.last_lines) or " nothing"
    return StageError(f"the process ended without a result ({reason}); it last printed:{said}")


def _explain_kill(kills_before: int | None, kills: int | None, peak_bytes: int) -> StageError:
    """Whether it was the kernel, for want of host memory, and by what evidence."""
    held = f"it held {peak_bytes / 1e9:.1f} GB when last heard of" if peak_bytes else "it had not been heard of"
    if kills is None or kills_before is None:
        return Killed(f"the process was killed (SIGKILL), by whomever: the kernel does not tell why; {held}; run again")
    if kills > kills_before:
        noted = f"the kernel has noted {kills - kills_before} such kill since it began"
        remedy = "free host memory, lower ALIGN_PARALLEL_STAGES, or take a smaller base model"
        return OutOfMemory(f"killed (SIGKILL), probably for want of host memory: {noted}; {held}; {remedy}")
    return Killed(
        f"the process was killed (SIGKILL), by whomever: the kernel has noted no want of memory; {held}; "
        "run again to go on"
    )


def _as_error(failure: Failure) -> AlignError | OSError:
    if failure.kind == "disk_full":
        return OSError(errno.ENOSPC, failure.message)
    errors = {
        "input": InputError, "out_of_memory": OutOfMemory, "killed": Killed, "stopped": Stopped, "stage": StageError,
    }  # fmt: skip
    if failure.kind in errors:
        return errors[failure.kind](failure.message)
    return StageError(f"{failure.message}\n{failure.trace}")


def _read_lines(output: Connection, on_line: Callable[[str], None] | None, last_lines: deque[str]) -> None:
    with os.fdopen(os.dup(output.fileno()), errors="replace") as lines:
        output.close()
        for line in lines:
            if line.strip():
                last_lines.append(line.rstrip())
                with suppress(OSError):  # a full disk must not keep the child from going on
                    if on_line:
                        on_line(line.rstrip())
