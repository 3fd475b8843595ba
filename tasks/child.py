"""Run a function in a process of its own: its memory comes back for certain, and its death is an ordinary failure.

Children are forked from a server that has imported torch, Transformers and TRL once: a stage starts in a few hundredths
of a second, and the flow's own process never imports them. The function's reports come back through one pipe, what it
prints through another. Several children can run a function as one. A child dies with the server, and the server with
the flow's process.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from typing import Any

from tasks.child_main import ChildOptions, serve
from tasks.children import COMPANION, Child, ChildFailed, explain, follow
from tasks.closing import SIGNALS, closing, stop_if_closing
from tasks.host_memory import out_of_memory_kills
from tasks.machines import keep_in_touch

_SECONDS_TO_STOP = 20
"""For a step to end and a checkpoint to be saved; all is to be gone within 30 s of a signal."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tasks.core.preload"])
_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # no `tasks.py` in the user's folder is ours
    # A step allocates and frees the same large tensors again and again. Kept by the process, they need no zeroed pages
    # anew; mimalloc finds room for them in less memory than glibc, which serves where mimalloc is not installed.
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
        wanted = _ENVIRONMENT | _mimalloc()
        os.environ.update({name: value for name, value in wanted.items() if name not in before})
        try:
            with _signals_kept_from_server():
                forkserver.ensure_running()
        finally:
            for name in wanted.keys() - before.keys():
                del os.environ[name]


@contextmanager
def _signals_kept_from_server() -> Iterator[None]:
    """Let it begin with signals blocked, until it ignores them: a Ctrl-C would end it with a traceback."""
    resource_tracker.ensure_running()  # begun by the server's start, it would end the blocking
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@atexit.register
def end_server() -> None:
    """End the server at once: it would take two seconds, in which who reads the command's output waits for its end."""
    if server := forkserver._forkserver._forkserver_pid:  # type: ignore[attr-defined]
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


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

    Where the options ask for several processes, all of them call it, and are one: the first one reports, prints and
    returns for all, and where one fails or dies, the others are ended. With processes of other machines, one more keeps
    in touch with those.

    Args:
        function: Importable from a module that the child may import; its last argument is a function that sends a
            picklable report here.
        arguments: Picklable values.
        options: Processes, threads and time limit.
        on_report: Gets each report.
        on_line: Gets each line that the child prints.
        on_peak: Gets the peak memory so far in bytes, of the child that takes most: with each report, and at the end.

    Returns:
        What the function returned.

    Raises:
        InputError, OutOfMemory, Killed, StageError: as the child's function raised them, or because the child died or
            took too long.
        OSError: the disk is full.
    """
    kills_before = out_of_memory_kills()
    warm_up()
    children: list[Child] = []
    try:
        with _start:
            for rank in range(options.launch.processes):
                children.append(Child(_context, serve, (function, arguments, options, rank), on_line))
                _running.add(children[-1].process)
            if options.post:
                heeding = (keep_in_touch, (options.post,), ChildOptions(threads=1), COMPANION)
                children.append(Child(_context, serve, heeding, on_line))
        stop_if_closing()
        return follow(children, on_report, on_peak, options.timeout_seconds)
    except ChildFailed as failure:
        for child in children:
            if child is not failure.child:  # it may wait for the one that is gone, and for ever
                child.process.kill()
        raise explain(failure, kills_before, out_of_memory_kills()) from None
    finally:
        _stop([child.process for child in children])
        for child in children:
            _running.discard(child.process)
            child.close()


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
