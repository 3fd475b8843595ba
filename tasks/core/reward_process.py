"""A user's reward function in a process of its own, which is kept between calls and started anew after it had to end.

What the function does cannot reach the training: it inherits neither secrets nor open files, its memory and its time
are limited, only JSON comes back, and it dies with the training process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import psutil

from tasks.module_path import module_path

_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Variables that the function may see; whatever else is set may be a secret."""
_SECONDS_TO_START = 60.0
"""Least time for the imports of the function's file."""
_SECONDS_TO_TELL = 1.0
_OURS = ("reward_worker.py", "<frozen runpy>")
"""What a stack shows below the user's code."""


class CallFailed(Exception):
    """A call gave no rewards."""

    def __init__(self, kind: str, trace: str) -> None:
        super().__init__(f"{kind}: {trace}")
        self.kind = kind
        """`exception`, `memory`, `timeout` or `crash`."""
        self.trace = trace
        """What happened and where: a traceback where there is one."""


class RewardProcess:
    """The process of one function."""

    def __init__(self, entrypoint: str, timeout_seconds: float, memory_limit_bytes: int) -> None:
        """Note what to run; the process starts with the first call.

        Args:
            entrypoint: `package.module:name` or `path/file.py:name`.
            timeout_seconds: Longest time of a call.
            memory_limit_bytes: What the process may allocate.
        """
        self._entrypoint = entrypoint
        self._timeout_seconds = timeout_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._trace: IO[bytes] | None = None

    def call(self, arguments: dict[str, Any]) -> list[Any]:
        """Call the function with keyword arguments that JSON can hold.

        Returns:
            What it returned: numbers (not a number and infinity included), none, or text in place of anything else.

        Raises:
            CallFailed: it raised, took too long, or its process ended.
        """
        if self._process is None:
            self._start()
        request = json.dumps(arguments).encode() + b"\n"
        rewards: list[Any] = self._ask(request, self._timeout_seconds)["rewards"]
        return rewards

    def close(self) -> None:
        """End the process and all that it has started; the next call starts it anew."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            for descendant in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    descendant.kill()
        self._process.kill()
        self._process.wait()
        for end in (self._channel, self._trace):
            if end:
                end.close()
        self._process = None

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        descriptors = (theirs.fileno(), self._trace.fileno())
        told = [self._entrypoint, *map(str, (*descriptors, os.getpid(), self._memory_limit_bytes))]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own worker
                [sys.executable, "-P", "-B", "-m", "tasks.core.reward_worker", *told],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=_environment(),
            )
        try:
            self._ask(b"", max(self._timeout_seconds, _SECONDS_TO_START))
        except CallFailed:
            self.close()
            raise

    def _ask(self, request: bytes, timeout_seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer; a process that gives none is ended."""
        try:
            answer = self._exchange(request, time.monotonic() + timeout_seconds)
        except TimeoutError:
            raise self._ended("timeout", f"it took longer than {timeout_seconds:g} s") from None
        except (OSError, ValueError):
            raise self._ended("crash", self._cause_of_death()) from None
        if "failure" in answer:
            raise CallFailed(str(answer["failure"]), str(answer["trace"]))
        return answer

    def _exchange(self, request: bytes, deadline: float) -> dict[str, Any]:
        channel, received = cast(socket.socket, self._channel), bytearray()
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        channel.sendall(request)
        while not received.endswith(b"\n"):
            channel.settimeout(max(0.001, deadline - time.monotonic()))
            part = channel.recv(1 << 16)
            if not part:
                raise ConnectionError
            received += part
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _ended(self, kind: str, what: str) -> CallFailed:
        """End the process, and say where in its code that was."""
        process = cast("subprocess.Popen[bytes]", self._process)
        if process.poll() is None:
            process.send_signal(signal.SIGUSR2)  # writes its stack
            time.sleep(_SECONDS_TO_TELL)
        stack = os.pread(cast(IO[bytes], self._trace).fileno(), 1 << 16, 0).decode(errors="replace")
        self.close()
        theirs = [line for line in stack.splitlines() if not any(ours in line for ours in _OURS)]
        return CallFailed(kind, "\n".join([what, *theirs]))

    def _cause_of_death(self) -> str:
        process = cast("subprocess.Popen[bytes]", self._process)
        try:
            code = process.wait(_SECONDS_TO_TELL)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        return f"its process ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _environment() -> dict[str, str]:
    """What the function may know of this process: where modules are, and a few harmless variables."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": module_path(Path.cwd()), "PYTHONUNBUFFERED": "1"}
