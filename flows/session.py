"""Running a flow from the command: Prefect as the command wants it, live progress, signals, and a lost API."""
# ruff: noqa: T201 - a command prints

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from models.errors import AlignError, InputError, StageError

if TYPE_CHECKING:
    from tasks.temporary_server import TemporaryServer

PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start on a new machine sets up a database and compiles every module.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    # Seconds between two signs of life: a server's automation takes a run for dead that is silent for 180.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # this command tells of errors itself, once
    "PREFECT_CLIENT_MAX_RETRIES": "4",  # half a minute for each call: time enough for a server to restart
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of the fork server's own locks, when a run is cut short
}


@contextmanager
def minding_ctrl_c() -> Iterator[None]:
    """While this is open, Ctrl-C is a KeyboardInterrupt, even where a library makes another error of it.

    Raises:
        KeyboardInterrupt: it came.
    """
    pressed = []

    def interrupt(number: int, frame: object) -> NoReturn:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in the background of a shell
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def begin_fork_server() -> None:
    """Start the training processes' parent, and set Prefect's defaults, for a flow that this command will call.

    Of all that has to come up it takes longest: begun before checks and imports, it is ready when Prefect is.
    """
    for variable, value in PREFECT_DEFAULTS.items():  # read when Prefect is first imported
        os.environ.setdefault(variable, value)
    from tasks.child import warm_up

    warm_up()


@contextmanager
def in_prefect(quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Call a flow inside, with Prefect as the command wants it, and show how its stages go.

    The fork server was begun before.

    Args:
        quiet: Whether the standard output is for the result alone; progress goes to the standard error then.

    Yields:
        To be called once the flow is imported: returns when Prefect is ready for it.
    """
    from tasks.temporary_server import TemporaryServer

    server = None if "PREFECT_API_URL" in os.environ else TemporaryServer()
    import httpx

    from flows.displays import showing_progress
    from flows.terminal import make_console
    from settings.settings import load_settings
    from tasks.files import explaining_a_full_disk

    console = make_console(stderr=quiet)
    console.print("all is checked; starting Prefect")
    try:
        with _leaving_on_signals(), showing_progress(console), explaining_a_full_disk(load_settings().home):
            yield server.adopt if server else lambda: None
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "reach API" not in str(error):
            raise
        _end_without_api(error, server)


def fail(error: AlignError, code: int) -> int:
    """Tell of an error in one message, and return the exit code."""
    print("align:", str(error).replace("\n", "\n       "), file=sys.stderr)
    return code


def _end_without_api(error: Exception, server: "TemporaryServer | None") -> NoReturn:
    """Say what became of the run and go; what Prefect still has to tell, it would try to hand over for minutes."""
    from prefect.settings import PREFECT_API_URL

    from flows.terminal import make_console, print_summary
    from settings.settings import load_settings
    from tasks.run_record import opened_run

    where = "its temporary server" if server and server.adopted else PREFECT_API_URL.value()
    lost = f"the Prefect API at {where} failed or cannot be reached ({type(error).__name__}: {error})"
    record = None
    with suppress(InputError):  # its record cannot be read
        record = opened_run(load_settings().home)
    if record and record.state == "completed":
        print_summary(record, make_console())
        print(f"align: {lost}; the run is complete, but Prefect does not know it", file=sys.stderr)
        _exit_at_once(0)
    _exit_at_once(fail(StageError(f"{lost}; what was trained is kept: run the same again, or `align resume`"), 1))


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """While this is open, a signal ends the command: the run's stages save and stop, then `_leave` is called."""
    from tasks.closing import SIGNALS
    from tasks.stopping import end_by

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    end_by(_leave)
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    try:
        yield
    finally:
        end_by(None)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    with suppress(OSError):  # the terminal may be gone
        print("\nalign: interrupted; run the same again, or `align resume`, to go on", file=sys.stderr, flush=True)
    _exit_at_once(128 + number)


def _exit_at_once(code: int) -> NoReturn:
    """End all processes of this one, the temporary server among them, and go: Prefect would wait for an answer."""
    from multiprocessing.util import get_temp_dir

    import psutil

    from tasks.child import end_server, stop_all

    stop_all()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    end_server()
    shutil.rmtree(get_temp_dir(), ignore_errors=True)  # the fork server's socket, which only an ordinary exit removes
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
