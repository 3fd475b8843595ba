"""The records of runs, as they lie in the artifact root: read, written, found, and held by the process at work."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.errors import InputError
from models.run import RunRecord
from tasks.files import replace_file, sweep

RECORD = "run.json"

_held: dict[str, FileLock] = {}
"""Locks of the runs that this process carries out; the system releases them when it dies."""
_opened: list[str] = []
"""All runs that this process has carried out."""


def read_run(path: Path) -> RunRecord:
    """Read the record in a run's folder.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        return RunRecord.model_validate_json((path / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        remedy = "`align run` with the same recipe takes all that is finished"
        why = error.strerror if isinstance(error, OSError) else "its content is not one"
        raise InputError(f"{path / RECORD}: not a readable run record ({why}); {remedy}") from None


def save_run(record: RunRecord, home: Path) -> RunRecord:
    """Write the record to the run's folder."""
    replace_file(home / "runs" / record.id / RECORD, record.model_dump_json(indent=2))
    return record


def opened_run(home: Path) -> RunRecord | None:
    """The run that this process has begun or gone on with last."""
    return read_run(home / "runs" / _opened[-1]) if _opened else None


def all_runs(home: Path) -> tuple[list[RunRecord], list[str]]:
    """All readable records, newest first, and what is wrong with the others."""
    records, problems = [], []
    for path in (home / "runs").glob(f"*/{RECORD}"):
        try:
            records.append(read_run(path.parent))
        except InputError as error:
            problems.append(str(error))
    return sorted(records, key=lambda record: record.started, reverse=True), problems


def unfinished_run(home: Path, wanted: str | None) -> RunRecord:
    """The run to go on with: the one whose name begins or ends so, or the last to end that did not complete.

    Raises:
        InputError: there is none, it is completed or still at work, or the name means several.
    """
    records, problems = all_runs(home)
    others = "".join(f"\n{problem}" for problem in problems)
    if wanted is None:
        unfinished = [record for record in records if standing(record, home) not in ("completed", "running")]
        if not unfinished:
            raise InputError(f"there is no unfinished run in {home}; `align run RECIPE` starts one{others}")
        return max(unfinished, key=lambda record: record.finished or record.started)
    matches = [record for record in records if record.id.startswith(wanted) or record.id.endswith(wanted)]
    if len(matches) != 1:
        rule = "means several runs" if matches else "means no run"
        names = ", ".join(record.id for record in matches or records) or "none yet"
        raise InputError(f"'{wanted}' {rule} in {home}; give more of a name: {names}{others}")
    refuse_unless_unfinished(matches[0], home)
    return matches[0]


def refuse_unless_unfinished(record: RunRecord, home: Path) -> None:
    """Refuse to go on with a run that is completed or still at work.

    Raises:
        InputError: it is.
    """
    if standing(record, home) == "completed":
        raise InputError(f"run {record.id} is completed; there is nothing to resume")
    if standing(record, home) == "running":
        raise _still_at_work(record.id, home)


def standing(record: RunRecord, home: Path) -> str:
    """Where a run stands: its recorded state, but `died` where that is `running` and no process is at work on it."""
    return "died" if record.state == "running" and not is_at_work(record.id, home) else record.state


def hold_run(name: str, home: Path) -> None:
    """Say that this process is at work on a run, until it releases it or dies.

    Raises:
        InputError: another process is.
    """
    path = _lock_path(name, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _still_at_work(name, home) from None
    _held[name] = lock
    _opened.append(name)
    sweep(home / "runs" / name)
    with suppress(OSError):
        path.with_suffix(".holder").write_text(f"process {os.getpid()} on {socket.gethostname()}")


def release_run(name: str) -> None:
    """Say that this process is not at work on a run any more."""
    if name in _held:
        _held.pop(name).release()


def is_at_work(name: str, home: Path) -> bool:
    """Whether a living process carries out the run."""
    if name in _held or not _lock_path(name, home).exists():
        return name in _held
    try:
        with FileLock(_lock_path(name, home), thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True


def runs_at_work(home: Path) -> list[RunRecord]:
    """The readable records of the runs that living processes carry out; no other record is read."""
    records = []
    for path in (home / "runs").glob(f"*/{RECORD}"):
        if is_at_work(path.parent.name, home):
            with suppress(InputError):
                records.append(read_run(path.parent))
    return records


def is_at_work_elsewhere(name: str, home: Path) -> bool:
    """Whether another process carries out the run."""
    return name not in _held and is_at_work(name, home)


def _still_at_work(name: str, home: Path) -> InputError:
    path = _lock_path(name, home).with_suffix(".holder")
    holder = path.read_text() if path.exists() else "another process"
    return InputError(f"run {name} is still at work ({holder}); wait for it, or stop it first")


def _lock_path(name: str, home: Path) -> Path:
    return home / ".locks" / f"run-{name}.lock"
