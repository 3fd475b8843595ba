"""A Prefect server for one command, where no API is configured; it comes up beside the imports of Prefect's client.

Prefect would start one itself, but only when its client first asks, and after the import of the whole server into the
client's process. This one is out of reach of a terminal's Ctrl-C, so that it can be told how a run ended, and ends with
the command.
"""

import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

from models.errors import StageError
from tasks.module_path import module_path

_SECONDS_TO_STOP = 5
_LINES_TOLD = 8
_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class TemporaryServer:
    """A server that listens from the start, and answers as soon as it can."""

    def __init__(self) -> None:
        self.adopted = False
        """Whether this process uses it."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it has it as long as it runs
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._api = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self._process = subprocess.Popen(  # noqa: S603 - our own server
                [sys.executable, "-P", "-m", "tasks.temporary_server", str(listener.fileno())],
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": module_path()},
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,  # it ends when that does, however this process dies
                stdout=self._output,
                stderr=self._output,
                process_group=0,  # not a session: Linux would give it as much of the cores as all other processes here
            )
        atexit.register(self.stop)

    def adopt(self) -> None:
        """Let this process use it once it answers; a profile of Prefect's that names an API comes first.

        Raises:
            StageError: it has ended, or takes longer than Prefect's setting allows.
        """
        from prefect.context import refresh_global_settings_context

        if self.adopted:
            return
        if not _is_wanted():
            self.stop()
            return
        self._wait()
        self.adopted = True
        os.environ["PREFECT_API_URL"] = self._api
        refresh_global_settings_context()

    def _wait(self) -> None:
        import httpx
        from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

        seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        try:
            httpx.get(f"{self._api}/health", timeout=seconds, trust_env=False)
        except httpx.TimeoutException:
            remedy = "set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS higher, or start one with `align up`"
            raise StageError(f"Prefect's temporary server did not answer within {seconds} s; {remedy}") from None
        except httpx.HTTPError as error:
            remedy = "put that right, or name a server in PREFECT_API_URL"
            raise StageError(
                f"Prefect's temporary server ended before it answered ({error}); {remedy}. "
                f"It printed\n{self._last_lines()}"
            ) from None

    def stop(self) -> None:
        """End it; one that sets up its database ends when that is done, and is not waited for."""
        self._process.terminate()
        if self.adopted:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_STOP)
            self._process.kill()

    def _last_lines(self) -> str:
        self._output.seek(0)
        return "\n".join(self._output.read().decode(errors="replace").splitlines()[-_LINES_TOLD:])


def _is_wanted() -> bool:
    """Whether Prefect's settings, profiles included, name no API and allow such a server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    return not PREFECT_API_URL.value() and bool(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value())


def _serve(listener: socket.socket) -> None:
    """Answer at the listening socket until the command ends."""
    threading.Thread(target=_end_with_command, daemon=True).start()
    if not _is_wanted():
        return
    gc.disable()  # to look through all that is imported takes half a second
    from filelock import FileLock
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_HOME
    from uvicorn import Config, Server

    gc.freeze()
    gc.enable()

    class Alone(Server):
        """Sets up the database while no other one does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with FileLock(PREFECT_HOME.value() / "temporary-server.lock"):
                await super().startup(sockets)

    Alone(Config(create_app, factory=True, log_level="error", lifespan="on")).run([listener])


def _end_with_command() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
