"""The Prefect server and the worker of one machine: where they are, with which settings they run, how they start.

Every setting is Prefect's own. What the user sets, in environment, `.env` or Prefect profile, wins over `DEFAULTS`.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import psutil
from prefect.settings import Settings as PrefectSettings

from models.errors import InputError, StageError
from settings.settings import Settings
from tasks.services import Service

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_API_PORT": "4200",
    # Held in memory, slots of concurrency limits would stay taken for ever after a restart.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Seconds between two signs of life of a flow run; the automation that misses them is in `tasks.automations`.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
POOL = "local"
WORKER_LIMIT = 4
"""Flow runs at a time: training takes turns by itself, and a promotion need not wait for the end of a training."""
DEPLOYMENTS_FILE = "prefect.yaml"
_ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SECONDS_TO_START = 300.0
"""The first start on a new machine sets up a database and compiles every module."""
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_TO_STOP = {"worker": 60.0, "server": 20.0}
"""A worker's runs save a checkpoint first."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Operations:
    """What runs where on this machine."""

    root: Path
    """Checkout: the folder with `prefect.yaml`, in which the worker runs."""
    settings: Settings
    """The pipeline's own settings."""
    environment: dict[str, str] = field(repr=False)
    """Environment of the services: the user's, completed by `DEFAULTS`. It may hold secrets."""
    folder: Path
    """Where records and logs of the services are."""

    @cached_property
    def server(self) -> Service:
        """The Prefect server."""
        return Service(self.folder, "server")

    @cached_property
    def worker(self) -> Service:
        """The worker of the pool `local`."""
        return Service(self.folder, "worker")

    @property
    def host(self) -> str:
        """The address that the server listens on."""
        return self.environment["PREFECT_SERVER_API_HOST"]

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.environment["PREFECT_SERVER_API_PORT"])

    @property
    def own_url(self) -> str:
        """Where a server that is started here answers, as seen from this machine."""
        host = "127.0.0.1" if self.host in _ANY_ADDRESS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def api(self) -> str:
        """URL of the API: `PREFECT_API_URL`, or that of a server that is started here."""
        return self.environment.get("PREFECT_API_URL") or f"{self.own_url}/api"

    @property
    def elsewhere(self) -> bool:
        """Whether `PREFECT_API_URL` names another place than the one where a server would be started here."""
        named, own = urlsplit(self.api), urlsplit(self.own_url)
        same_host = named.hostname == own.hostname or {named.hostname, own.hostname} <= {*_LOOPBACK}
        return not (same_host and named.port == own.port)

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the server, and nobody asks who they are."""
        return self.host not in _LOOPBACK and not self.environment.get("PREFECT_SERVER_API_AUTH_STRING")

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment of the worker and its runs: they know the API, but not the database nor the server's secrets."""
        kept = {name: value for name, value in self.environment.items() if not name.startswith("PREFECT_SERVER_")}
        told = {"PREFECT_API_URL": self.api, "ALIGN_HOME": str(self.settings.home)}
        return kept | told | ({"PREFECT_API_AUTH_STRING": self.auth_string} if self.auth_string else {})

    @property
    def auth_string(self) -> str:
        """What clients say who they are; empty where nobody asks."""
        mine = self.environment.get("PREFECT_API_AUTH_STRING")
        return mine or ("" if self.elsewhere else self.environment.get("PREFECT_SERVER_API_AUTH_STRING", ""))


def plan_operations(settings: Settings, root: Path) -> Operations:
    """Read Prefect's settings and complete them.

    Args:
        settings: The pipeline's own settings.
        root: Folder that the command runs in.
    """
    os.environ.setdefault("DO_NOT_TRACK", DEFAULTS["DO_NOT_TRACK"])
    found = PrefectSettings()
    chosen = found.to_environment_variables(exclude_unset=True)
    environment = DEFAULTS | chosen | os.environ
    return Operations(root, settings, environment, found.home / "align")


def require_checkout(root: Path) -> None:
    """Refuse to work in a folder that has no deployments.

    Raises:
        InputError: there is no `prefect.yaml`.
    """
    if not (root / DEPLOYMENTS_FILE).is_file():
        raise InputError(f"{root} has no {DEPLOYMENTS_FILE}; go to the checkout of the pipeline and try again")


def start_server(operations: Operations, say: Say) -> bool:
    """Start the server and wait until it answers; whether that was needed.

    Raises:
        InputError: the port is taken, or the server that the user has named does not answer.
        StageError: the server has died, or does not answer in time.
    """
    command = [sys.executable, "-m", "prefect", "server", "start"]
    command += ["--host", operations.host, "--port", str(operations.port)]
    if running := operations.server.process():
        _refuse_other_address(running, command)
        _await_api(operations, say)
        return False
    if operations.environment.get("PREFECT_API_URL") and answers(operations.api):
        return False
    if operations.elsewhere:
        raise InputError(
            f"PREFECT_API_URL is {operations.api}, where no Prefect server answers; start it, or unset that"
        )
    _refuse_taken_port(operations)
    say(f"starting the server at {operations.own_url}; the first start takes half a minute")
    told = {"PREFECT_UI_URL": operations.own_url} | operations.environment
    operations.server.start(command, told, operations.root)
    _await_api(operations, say)
    return True


def start_worker(operations: Operations, client: "SyncPrefectClient", say: Say) -> bool:
    """Start the worker and wait until the server has heard of it; whether that was needed.

    Raises:
        StageError: it ended, or took too long.
    """
    if operations.worker.process():
        return False
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", f"{socket.gethostname()}-{POOL}", "--limit", str(WORKER_LIMIT)]
    operations.worker.start(command, operations.client_environment, operations.root)
    _await(operations.worker, lambda: _is_heard_of(client), f"the server at {operations.api} has not heard of it", say)
    return True


def _is_heard_of(client: "SyncPrefectClient") -> bool:
    return any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(POOL))


def stop_service(service: Service) -> bool:
    """Stop a service; whether it ran."""
    return service.stop(_SECONDS_TO_STOP[service.name])


def answers(api: str) -> bool:
    """Whether a Prefect API answers there."""
    with suppress(httpx.HTTPError, ValueError):
        response = httpx.get(f"{api}/health", timeout=5)
        return response.status_code == httpx.codes.UNAUTHORIZED or response.text.strip() == "true"
    return False


def _refuse_other_address(running: psutil.Process, command: list[str]) -> None:
    """Raise an error where our server runs at another address than the settings say now."""
    if (others := running.cmdline())[-4:] != command[-4:]:
        runs, says = " ".join(others[-4:]), " ".join(command[-4:])
        remedy = "`align down` first, or set PREFECT_SERVER_API_HOST and PREFECT_SERVER_API_PORT as they were"
        raise InputError(f"the server (process {running.pid}) runs with {runs}, but the settings say {says}; {remedy}")


def _await_api(operations: Operations, say: Say) -> None:
    _await(operations.server, lambda: answers(operations.api), f"it does not answer at {operations.api}", say)


def _await(service: Service, is_ready: Callable[[], bool], unready: str, say: Say) -> None:
    """Wait until a service that was started is ready; `unready` tells what is missing where that takes too long."""
    began = said = time.monotonic()
    while not is_ready():
        if service.process() is None:
            raise StageError(f"the {service.name} has ended; its log, {service.log}, says\n{service.last_lines()}")
        now = time.monotonic()
        if now - began > _SECONDS_TO_START:
            late = f"{unready} after {_SECONDS_TO_START:.0f} s"
            raise StageError(f"the {service.name} has not come up: {late}; its log is {service.log}")
        if now - said > _SECONDS_BETWEEN_LINES:
            said = now
            say(f"the {service.name} is starting ({now - began:.0f} s)")
        time.sleep(0.3)


def _refuse_taken_port(operations: Operations) -> None:
    """Raise an error where something else listens on the server's port."""
    with suppress(OSError), socket.create_connection((urlsplit(operations.own_url).hostname, operations.port), 2):
        who = _listener(operations.port)
        remedy = "stop it, or set PREFECT_SERVER_API_PORT to a free port"
        if answers(f"{operations.own_url}/api"):
            remedy += f"; to use it, as it is a Prefect server, set PREFECT_API_URL={operations.own_url}/api"
        raise InputError(f"port {operations.port} of {operations.host} is taken by {who}, not by `align up`; {remedy}")


def _listener(port: int) -> str:
    """The process that listens on a port, as far as this user may know."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "another process"
