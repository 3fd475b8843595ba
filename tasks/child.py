"""Run a function in a process of its own: its memory comes back for certain, and its death is an ordinary failure.

Children are forked from a server that has imported torch, Transformers and TRL once: a stage starts in a few hundredths
of a second, and the flow's own process never imports them. The function's reports come back through one pipe, what it
prints through another. A child dies with the server, and the server with the flow's process.
"""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from models.errors import AlignError, InputError, Killed, OutOfMemory, StageError, Stopped
from tasks.child_main import ChildOptions, Failure, serve
from tasks.closing import closing, stop_if_closing
from tasks.host_memory import out_of_memory_kills

_SECONDS_TO_STOP = 20
"""For a step to end and a checkpoint to be saved; all is to be gone within 30 s of a signal."""
_LINES_TO_TELL = 20

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tasks.core.preload"])
# A step allocates and frees the same large tensors again and again. Kept by the process, they need no zeroed pages
# anew; mimalloc finds room for them in less memory than glibc, which serves where mimalloc is not installed.
_KEEP_FREED_MEMORY = {
    "MIMALLOC_PURGE_DELAY": "-1",
    "MIMALLOC_ARENA_EAGER_COMMIT": "0",  # what is only reserved must not count for a memory limit
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
_start = threading.Lock()
_running: set[ForkServerProcess] = set()


def warm_up() -> None:
    """Start the server, so that its imports are done by the time that the first stage asks for a child."""
    with _start:
        before = dict(os.environ)
        wanted = _KEEP_FREED_MEMORY | _mimalloc()
        os.environ.update({name: value for name, value in wanted.items() if name not in before})
        try:
            forkserver.ensure_running()
        finally:
            for name in wanted.keys() - before.keys():
                del os.environ[name]


@cache
def _mimalloc() -> dict[str, str]:
    """What loads the installed mimalloc in place of the C library's allocator."""
    try:
        installed = files("cmeel-mimalloc") or []
    except PackageNotFoundError:
        return {}
    libraries = [str(file.locate()) for file in installed if file.name == "libmimalloc.so"]
    return {"LD_PRELOAD": libraries[0]} if libraries else {}


def run_in_child(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: ChildOptions,
    on_report: Callable[[Any], None],
    on_line: Callable[[str], None],
    on_peak: Callable[[int], None] = lambda peak_bytes: None,
) -> Any:
    """Call `function(*arguments, report)` in a child process and wait for it.

    Args:
        function: Importable from a module that the child may import; its last argument is a function that sends a
            picklable report here.
        arguments: Picklable values.
        options: Threads and time limit.
        on_report: Gets each report.
        on_line: Gets each line that the child prints.
        on_peak: Gets the child's peak memory so far in bytes: with each report, and at the end.

    Returns:
        What the function returned.

    Raises:
        InputError, OutOfMemory, Killed, StageError: as the child's function raised them, or because the child died or
            took too long.
        OSError: the disk is full.
    """
    kills_before = out_of_memory_kills()
    events, child_events = _context.Pipe(duplex=False)
    output, child_output = _context.Pipe(duplex=False)
    warm_up()
    with _start:
        process = _context.Process(target=serve, args=(function, arguments, options, child_events, child_output))
        process.start()
        _running.add(process)
    child_events.close()
    child_output.close()
    last_lines: deque[str] = deque(maxlen=_LINES_TO_TELL)
    reader = threading.Thread(target=_read_lines, args=(output, on_line, last_lines), daemon=True)
    reader.start()
    try:
        stop_if_closing()
        return _follow(process, events, on_report, on_peak, options.timeout_seconds)
    except _Died as death:
        reader.join(timeout=5)
        raise _explain(death, kills_before, last_lines) from None
    finally:
        _stop([process])
        _running.discard(process)
        reader.join(timeout=5)
        events.close()


def stop_all() -> None:
    """End all children of this process, and start no more; the threads that wait for them go on with an error."""
    closing.set()
    _stop(tuple(_running))


def _stop(processes: Collection[ForkServerProcess]) -> None:
    """End children and everything that they have started: politely first, then for certain."""
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        process.kill()
        if process.pid:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _follow(
    process: ForkServerProcess,
    events: Connection,
    on_report: Callable[[Any], None],
    on_peak: Callable[[int], None],
    timeout_seconds: float | None,
) -> Any:
    """Pass reports on until the child has returned, failed or died."""
    deadline = time.monotonic() + timeout_seconds if timeout_seconds else None
    highest = 0
    while True:
        remaining = max(0.0, deadline - time.monotonic()) if deadline else None
        if not wait([events, process.sentinel], remaining):
            raise StageError(f"stopped after {timeout_seconds:g} s; raise ALIGN_STAGE_TIMEOUT_SECONDS to allow more")
        kind, value, peak = _receive(events)
        highest = max(highest, peak)
        on_peak(highest)
        if kind == "report":
            on_report(value)
        elif kind == "returned":
            process.join(timeout=_SECONDS_TO_STOP)
            return value
        elif kind == "failed":
            raise _as_error(value)
        else:
            process.join()
            raise _Died(process.exitcode or 0, highest)


def _receive(events: Connection) -> tuple[str, Any, int]:
    """The child's next message: kind, value, peak memory; `died` where none will come any more."""
    try:
        message: tuple[str, Any, int] = events.recv() if events.poll() else ("died", None, 0)
    except EOFError:
        return "died", None, 0
    return message


class _Died(Exception):
    """The child ended without a word."""

    def __init__(self, exit_code: int, peak_bytes: int) -> None:
        super().__init__(exit_code, peak_bytes)
        self.exit_code = exit_code
        self.peak_bytes = peak_bytes


def _explain(death: _Died, kills_before: int | None, last_lines: Iterable[str]) -> StageError:
    """What to say of a child that ended without a word."""
    if closing.is_set():
        return Stopped("stopped on request")
    if death.exit_code == -signal.SIGKILL:
        return _explain_kill(kills_before, death.peak_bytes)
    reason = signal.Signals(-death.exit_code).name if death.exit_code < 0 else f"exit code {death.exit_code}"
    said = "".join(f"\n  {line}" for line in last_lines) or " nothing"
    return StageError(f"the process ended without a result ({reason}); it last printed:{said}")


def _explain_kill(kills_before: int | None, peak_bytes: int) -> StageError:
    """Whether it was the kernel, for want of host memory, and by what evidence."""
    kills = out_of_memory_kills()
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
    errors = {"input": InputError, "out_of_memory": OutOfMemory, "stopped": Stopped, "stage": StageError}
    if failure.kind in errors:
        return errors[failure.kind](failure.message)
    return StageError(f"{failure.message}\n{failure.trace}")


def _read_lines(output: Connection, on_line: Callable[[str], None], last_lines: deque[str]) -> None:
    with os.fdopen(os.dup(output.fileno()), errors="replace") as lines:
        output.close()
        for line in lines:
            if line.strip():
                last_lines.append(line.rstrip())
                with suppress(OSError):  # a full disk must not keep the child from going on
                    on_line(line.rstrip())
