"""A place to operate: a folder with deployments of two small flows, and a Prefect server of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.faults import ROOT, wait_until

FLOWS = """
import os, signal, time
from prefect import flow
from tasks.events import tell

@flow(name="align")
def happen(events: tuple[str, ...] = (), seconds: float = 0.0, die: bool = False):
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    for event in events:
        tell(event, "run-1", f"this is {event}", report="/reports/run-1.html")
    time.sleep(seconds)

@flow
def other():
    raise ValueError("of another flow")
"""
DEPLOYMENTS = """
deployments:
  - {name: happenings, entrypoint: "happenings.py:happen", work_pool: {name: local},
     schedules: [{cron: "0 3 * * *", active: false}]}
  - {name: others, entrypoint: "happenings.py:other", work_pool: {name: local}}
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Place:
    """The folder, and the command as it runs there."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.state = folder, folder / "prefect" / "align"
        self.auth = settings.get("PREFECT_SERVER_API_AUTH_STRING")
        port = str(free_port())
        self.api = f"http://127.0.0.1:{port}/api"
        mine = {
            "ALIGN_HOME": "artifacts",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_PORT": port,
            "PYTHONPATH": str(ROOT),
        }
        foreign = ("PREFECT_", "ALIGN_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment = kept | mine | settings
        (folder / "prefect.yaml").write_text(DEPLOYMENTS)
        (folder / "happenings.py").write_text(FLOWS)

    def align(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Call the command in the folder."""
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.folder,
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def doctor(self, **settings: str) -> tuple[int, dict[str, dict[str, str]]]:
        """Exit code of `align doctor` and what it says, by check."""
        done = self.align("doctor", "--json", **settings)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}

    def process(self, service: str) -> psutil.Process:
        """The server or the worker."""
        return psutil.Process(json.loads((self.state / f"{service}.json").read_text())["pid"])

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of the server."""
        told: dict[Any, Any] = {PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: self.auth}
        with temporary_settings(told), get_client(sync_client=True) as client:
            yield client

    def run(self, deployment: str, **parameters: Any) -> UUID:
        """Ask for a run of a deployment."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def wait_for_sign_of_life(self, run: UUID) -> None:
        """Wait until the server has heard a run's heart beat."""
        question = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
        with self.client() as client:

            def heard() -> bool:
                return bool(client.request("POST", "/events/filter", json={"filter": question}).json()["events"])

            wait_until(heard, 60)

    def wait_for(self, run: UUID, state: str, seconds: float = 120) -> str:
        """Wait until a run is in a state; its message."""
        with self.client() as client:
            wait_until(lambda: client.read_flow_run(run).state_name == state, seconds)
            found = client.read_flow_run(run).state
        return (found and found.message) or ""
