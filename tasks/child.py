"""Run a function in a process of its own: its memory comes back for certain, and its death is an ordinary failure.

Children are forked from a server that has imported torch, Transformers and TRL once: a stage starts in a few hundredths
of a second, and the flow's own process never imports them. The function's reports come back through one pipe, what it
prints through another. A child dies with the server, and the server with the flow's process.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from models.contract import Contract
from models.errors import AlignError, InputError, OutOfMemory, StageError, Stopped
from tasks.execution import Execution

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_STOP = 10
_LINES_TO_TELL = 20

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tasks.core.preload"])
# A step allocates and frees the same large tensors again and again; without this glibc returns them to the system each
# time, and every step pays for zeroed pages anew.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
_start = threading.Lock()
_running: set[ForkServerProcess] = set()
_told_to_stop: set[ForkServerProcess] = set()


class ChildOptions(Contract):
    """How a child runs; none of it changes what it computes."""

    threads: int
    """CPU threads of the child."""
    timeout_seconds: float | None = None
    """The child is killed after so long."""

    place: int = 0
    """Which of several accelerators it sees; with one or none, all there is."""

    @classmethod
    def of(cls, execution: Execution, place: int) -> "ChildOptions":
        """The options that settings and machine ask for, in that place of the machine."""
        timeout = execution.settings.stage_timeout_seconds
        return cls(threads=execution.threads, timeout_seconds=timeout, place=place)


class Failure(Contract):
    """Why a child's function failed, as it crosses the process border."""

    kind: str
    """`input`, `out_of_memory`, `stage` (a message for the user) or `bug` (ours: the traceback is kept)."""
    message: str
    """The error's message."""
    trace: str
    """The traceback, for the log."""


def warm_up() -> None:
    """Start the server, so that its imports are done by the time that the first stage asks for a child."""
    with _start:
        before = dict(os.environ)
        os.environ.update({name: value for name, value in _KEEP_FREED_MEMORY.items() if name not in before})
        try:
            forkserver.ensure_running()
        finally:
            for name in _KEEP_FREED_MEMORY.keys() - before.keys():
                del os.environ[name]


def run_in_child(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: ChildOptions,
    on_report: Callable[[Any], None],
    on_line: Callable[[str], None],
) -> tuple[Any, int]:
    """Call `function(*arguments, report)` in a child process and wait for it.

    Args:
        function: Importable from a module that the child may import; its last argument is a function that sends a
            picklable report here.
        arguments: Picklable values.
        options: Threads and time limit.
        on_report: Gets each report.
        on_line: Gets each line that the child prints.

    Returns:
        What the function returned, and the child's peak resident memory in bytes.

    Raises:
        InputError, OutOfMemory, StageError: as the child's function raised them, or because the child died or took too
            long.
    """
    events, child_events = _context.Pipe(duplex=False)
    output, child_output = _context.Pipe(duplex=False)
    warm_up()
    with _start:
        process = _context.Process(target=_serve, args=(function, arguments, options, child_events, child_output))
        process.start()
        _running.add(process)
    child_events.close()
    child_output.close()
    last_lines: deque[str] = deque(maxlen=_LINES_TO_TELL)
    reader = threading.Thread(target=_read_lines, args=(output, on_line, last_lines), daemon=True)
    reader.start()
    try:
        return _follow(process, events, on_report, options.timeout_seconds)
    except _Died as death:
        reader.join(timeout=5)
        raise _explain(process, death.exit_code, last_lines) from None
    finally:
        stop(process)
        _running.discard(process)
        reader.join(timeout=5)
        events.close()


def stop_all() -> None:
    """End all children of this process; the threads that wait for them go on with an error."""
    for process in tuple(_running):
        _told_to_stop.add(process)
        stop(process)


def stop(process: ForkServerProcess) -> None:
    """End a child and everything that it has started: politely first, then for certain."""
    if process.is_alive():
        process.terminate()
        process.join(timeout=_SECONDS_TO_STOP)
    if process.pid is not None:
        process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _follow(
    process: ForkServerProcess, events: Connection, on_report: Callable[[Any], None], timeout_seconds: float | None
) -> tuple[Any, int]:
    """Pass reports on until the child has returned, failed or died."""
    deadline = time.monotonic() + timeout_seconds if timeout_seconds else None
    while True:
        remaining = max(0.0, deadline - time.monotonic()) if deadline else None
        if not wait([events, process.sentinel], remaining):
            raise StageError(f"stopped after {timeout_seconds:g} s; raise ALIGN_STAGE_TIMEOUT_SECONDS to allow more")
        kind, value, peak = _receive(events)
        if kind == "report":
            on_report(value)
        elif kind == "returned":
            process.join(timeout=_SECONDS_TO_STOP)
            return value, peak
        elif kind == "failed":
            raise _as_error(value)
        else:
            process.join()
            raise _Died(process.exitcode or 0)


def _receive(events: Connection) -> tuple[str, Any, int]:
    """The child's next message: kind, value, peak memory; `died` where none will come any more."""
    try:
        message: tuple[str, Any, int] = events.recv() if events.poll() else ("died", None, 0)
    except EOFError:
        return "died", None, 0
    return message


class _Died(Exception):
    """The child ended without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _explain(process: ForkServerProcess, exit_code: int, last_lines: Iterable[str]) -> StageError:
    """What to say of a child that ended without a word."""
    if process in _told_to_stop:
        return Stopped("stopped on request")
    if exit_code == -signal.SIGKILL:
        return OutOfMemory(
            "the training process was killed (SIGKILL), most likely by the kernel for want of host memory"
        )
    reason = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    said = "".join(f"\n  {line}" for line in last_lines) or " nothing"
    return StageError(f"the training process ended without a result ({reason}); it last printed:{said}")


def _as_error(failure: Failure) -> AlignError:
    errors = {"input": InputError, "out_of_memory": OutOfMemory, "stage": StageError}
    if failure.kind in errors:
        return errors[failure.kind](failure.message)
    return StageError(f"{failure.message}\n{failure.trace}")


def _read_lines(output: Connection, on_line: Callable[[str], None], last_lines: deque[str]) -> None:
    with os.fdopen(os.dup(output.fileno()), errors="replace") as lines:
        output.close()
        for line in lines:
            if line.strip():
                last_lines.append(line.rstrip())
                on_line(line.rstrip())


def _serve(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: ChildOptions,
    events: Connection,
    output: Connection,
) -> None:
    """The child's side: run the function and send back what comes of it."""
    _die_with_parent()
    os.setpgid(0, 0)  # a group of its own, so that all that it starts can be ended with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    _see_one_accelerator(options.place)
    _limit_threads(options.threads)
    try:
        result = function(*arguments, lambda report: events.send(("report", report, 0)))
        events.send(("returned", result, _peak_memory_bytes()))
    except Exception as error:  # whatever it is, it has to cross the process border
        events.send(("failed", _describe(error), _peak_memory_bytes()))


def _die_with_parent() -> None:
    # Every child gets a copy of the server's lifeline, and would keep the server alive without the flow's process.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _see_one_accelerator(place: int) -> None:
    """Hide all CUDA devices but one: Transformers would spread a batch over all that it sees, and enlarge it."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = [device for device in visible.split(",") if device]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]


def _limit_threads(threads: int) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _peak_memory_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _describe(error: Exception) -> Failure:
    from tasks.core.memory import is_out_of_memory

    trace = "".join(traceback.format_exception(error))
    if isinstance(error, InputError):
        return Failure(kind="input", message=str(error), trace=trace)
    if is_out_of_memory(error):
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        return Failure(kind="out_of_memory", message=first_line, trace=trace)
    if isinstance(error, AlignError):
        return Failure(kind="stage", message=str(error), trace=trace)
    return Failure(kind="bug", message=f"{type(error).__name__}: {error}", trace=trace)
