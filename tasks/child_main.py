"""The child's side of `tasks.child`: a forked process that runs one function and dies with its parent."""

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import psutil
from pydantic import Field

from models.contract import Contract
from models.errors import AlignError, InputError, Killed, Stopped
from models.launch import LOOPBACK, Launch
from models.machines import Post
from tasks.closing import SIGNALS
from tasks.execution import Execution
from tasks.files import is_disk_full
from tasks.launch import meeting

_PR_SET_PDEATHSIG = 1
_M_TOP_PAD = -2
_TOP_PAD_BYTES = 128 << 10  # glibc's default: nothing is reserved far ahead of need


class ChildOptions(Contract):
    """How a child runs; none of it changes what it computes."""

    threads: int
    """CPU threads of each process."""
    timeout_seconds: float | None = None
    """The child is stopped after so long."""
    memory_limit_bytes: int | None = None
    """Host memory that each process may allocate."""
    environment: dict[str, str] = Field({}, repr=False)
    """Variables to set, which may hold secrets."""
    places: tuple[int, ...] = (0,)
    """Which of several accelerators it sees; with one or none, all there is."""
    launch: Launch = Launch()
    """The processes that run the function together."""
    post: Post | None = None
    """Where the machines hear of one another, where there are several."""

    @classmethod
    def of(cls, execution: Execution, places: tuple[int, ...]) -> "ChildOptions":
        """The options that settings and machine ask for, in those places of the machine."""
        settings = execution.settings
        return cls(
            threads=max(1, execution.threads // execution.launch.processes),
            timeout_seconds=settings.stage_timeout_seconds,
            memory_limit_bytes=settings.memory_limit_bytes,
            places=places,
            launch=meeting(execution.launch),
        )


class Failure(Contract):
    """Why a child's function failed, as it crosses the process border."""

    kind: str
    """`input`, `out_of_memory`, `killed`, `disk_full`, `stopped`, `stage` (all with a message for the user) or `bug`
    (ours: the traceback is kept)."""
    message: str
    """The error's message."""
    trace: str
    """The traceback, for the log."""


def serve(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: ChildOptions,
    rank: int,
    pipes: tuple[Connection, Connection],
) -> None:
    """Run the function and send back what comes of it: reports, what it prints, and its value or failure.

    Args:
        function: What to run.
        arguments: What it gets, before the function that sends its reports.
        options: How it runs.
        rank: Number of this process among those of this machine that run it together.
        pipes: For events, and for what is printed.
    """
    events, output = pipes
    gc.enable()  # the server does without
    _print_to(output)
    _die_with_server()
    os.setpgid(0, 0)  # a group of its own, so that all that it starts can be ended with it
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(options.environment)
    _name_levels()
    _see_accelerators(options.places)
    _join(options.launch, rank)
    _limit_threads(options.threads)
    if options.memory_limit_bytes:
        _limit_memory(options.memory_limit_bytes)
    try:
        said = "report" if rank == 0 else "peak"
        result = function(*arguments, lambda report: events.send((said, report, _peak_memory_bytes())))
        events.send(("returned", result, _peak_memory_bytes()))
    except Exception as error:  # whatever it is, it has to cross the process border
        events.send(("failed", _describe(error), _peak_memory_bytes()))


def _print_to(output: Connection) -> None:
    """Have all that this process prints go there."""
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _name_levels() -> None:
    """Let every logger print a line's level first, and warnings be lines of a logger: the run's log keeps the level."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", force=True)
    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (each for each in known if each.handlers):
        # What Transformers prints itself, and passes on too where `CI` is set, would be told twice.
        logger.handlers.clear()
        logger.propagate = True
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: f"{category.__name__}: {message}"
    logging.captureWarnings(True)


def _die_with_server() -> None:
    from tasks.core.preload import SERVER

    # Every child gets a copy of the server's lifeline, and would keep the server alive without the flow's process.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    signal_on_death_of(SERVER, signal.SIGKILL)


def signal_on_death_of(parent: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent dies, or at once where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def _see_accelerators(places: tuple[int, ...]) -> None:
    """Hide all other CUDA devices: Transformers would spread a batch over all that it sees, and enlarge it."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = [device for device in visible.split(",") if device]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[place % len(devices)] for place in places)


def _join(launch: Launch, rank: int) -> None:
    """Let PyTorch and Accelerate find the other processes, and gloo reach those of this machine without the network."""
    import torch

    os.environ.update(launch.environment(rank))
    if launch.processes > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # models are loaded before Accelerate does so
    if sys.platform == "linux" and launch.address == LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _limit_threads(threads: int) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _limit_memory(limit_bytes: int) -> None:
    """Let allocations fail beyond the limit. What is reserved but not in use, such as stacks, does not count."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
    now = psutil.Process().memory_info()
    allowed = now.data + max(0, limit_bytes - now.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


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
    if is_disk_full(error):
        return Failure(kind="disk_full", message=str(error), trace=trace)
    if isinstance(error, AlignError):
        kind = "stopped" if isinstance(error, Stopped) else "killed" if isinstance(error, Killed) else "stage"
        return Failure(kind=kind, message=str(error), trace=trace)
    return Failure(kind="bug", message=f"{type(error).__name__}: {error}", trace=trace)
