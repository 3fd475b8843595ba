"""Processes that outlive the command which starts them, each known by its id, its command and the time of its start."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from models.operations import ServiceRecord
from tasks.files import replace_file

_SECONDS_TO_TELL = 0.5
"""For a process to note how what it has started ended."""
_SECONDS_OF_CLOCK_DRIFT = 60.0
"""By which the system may tell a process's start differently after the clock was set."""


class Service:
    """One such process, with a record and a log in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._record = folder / f"{name}.json"

    def process(self) -> psutil.Process | None:
        """The process, if it runs: never another one that has got its id since."""
        with suppress(OSError, ValidationError, psutil.Error):
            record = ServiceRecord.model_validate_json(self._record.read_bytes())
            process = psutil.Process(record.pid)
            same = abs(process.create_time() - record.started) < _SECONDS_OF_CLOCK_DRIFT
            if same and tuple(process.cmdline()) == record.command and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> psutil.Process:
        """Start it in a session of its own, so that it survives the terminal; what it prints goes to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.returncode = 0  # it is not waited for: it stays
        process = psutil.Process(child.pid)
        record = ServiceRecord(pid=child.pid, started=process.create_time(), command=tuple(command))
        replace_file(self._record, record.model_dump_json())
        return process

    def stop(self, patience_seconds: float) -> bool:
        """End what it has started, while it can still tell how that ended, and then itself; whether it ran.

        Args:
            patience_seconds: Time for each of the two; what has not ended then is killed.
        """
        process = self.process()
        if process is not None:
            if started := process.children():
                _end(started, process.children(recursive=True), patience_seconds)
                time.sleep(_SECONDS_TO_TELL)
            _end([process], [process, *process.children(recursive=True)], patience_seconds)
        self._record.unlink(missing_ok=True)
        return process is not None

    def last_lines(self, count: int = 8) -> str:
        """The end of the log, for a message about a service that has died."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        return ""


def _end(asked: Sequence[psutil.Process], tree: Sequence[psutil.Process], patience_seconds: float) -> None:
    """Ask some processes to end, wait for them and all that they have started, kill what is left."""
    for each in asked:
        with suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(tree, timeout=patience_seconds)
    for each in alive:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=5)
