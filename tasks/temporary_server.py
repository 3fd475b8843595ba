"""A Prefect server for one command, where no API is configured; begun early, so that it comes up beside the imports.

Prefect would start one itself, but only when its client first asks, and after the import of the whole server into the
client's process. This one is out of reach of a terminal's Ctrl-C, so that it can be told how a run ended, and dies with
the command.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress

from models.errors import StageError
from tasks.closing import signal_on_death_of

_SECONDS_TO_STOP = 5
_LINES_TOLD = 8
_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class TemporaryServer:
    """A server that listens from the start, and answers as soon as it can."""

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it has it as long as it runs
        self._adopted = False
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._api = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid())],
                env=os.environ | _ENVIRONMENT,
                pass_fds=[listener.fileno()],
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def adopt(self) -> None:
        """Let this process use it once it answers; a profile of Prefect's that names an API comes first.

        Raises:
            StageError: it has ended, or takes longer than Prefect's setting allows.
        """
        from prefect.context import refresh_global_settings_context
        from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

        if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
            self.stop()
            return
        self._wait()
        self._adopted = True
        os.environ["PREFECT_API_URL"] = self._api
        refresh_global_settings_context()

    def _wait(self) -> None:
        import httpx
        from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

        seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        try:
            httpx.get(f"{self._api}/health", timeout=seconds)
        except httpx.TimeoutException:
            remedy = "set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS higher, or start one with `align up`"
            raise StageError(f"Prefect's temporary server did not answer within {seconds} s; {remedy}") from None
        except httpx.HTTPError as error:
            raise StageError(
                f"Prefect's temporary server ended before it answered ({error}); it printed\n{self._last_lines()}"
            ) from None

    def stop(self) -> None:
        """End it; one that still starts, or sets up its database, ends when that is done, and is not waited for."""
        self._process.terminate()
        if self._adopted:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_STOP)
            self._process.kill()

    def _last_lines(self) -> str:
        self._output.seek(0)
        return "\n".join(self._output.read().decode(errors="replace").splitlines()[-_LINES_TOLD:])


def _serve(listener: socket.socket, command: int) -> None:
    """Answer at the listening socket until the command, whose process id is given, ends or says so."""
    signal_on_death_of(command, signal.SIGTERM)
    from uvicorn import Config, Server

    config = Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    Server(config).run([listener])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
