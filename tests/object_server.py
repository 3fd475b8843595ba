"""A real S3 server on this machine that can go away and come back, and a bucket on it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.faults import wait_until

BUCKET = "artifacts"


class ObjectServer:
    """moto's server in a process of its own; what it holds goes with it."""

    def __init__(self, checked: bool = False) -> None:
        """Choose a port.

        Args:
            checked: Whether credentials are, after the bucket was made.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._checks = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checked else {}
        self.address = f"http://127.0.0.1:{self._port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it, wait until it answers and make the bucket."""
        self._process = subprocess.Popen(
            [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(self._port)],
            env=os.environ | self._checks,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, 60)
        httpx.put(f"{self.address}/{BUCKET}").raise_for_status()

    def kill(self) -> None:
        """End it without warning."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def keys(self, prefix: str) -> list[str]:
        """The objects in the bucket whose keys begin so."""
        listing = httpx.get(f"{self.address}/{BUCKET}", params={"list-type": "2", "prefix": prefix}).text
        return re.findall("<Key>([^<]*)</Key>", listing)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/moto-api/", timeout=5).is_success
        except httpx.HTTPError:
            return False
