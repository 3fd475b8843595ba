"""The records of runs, as they lie in the artifact root: read, written, found."""

import os
import socket
from pathlib import Path

import psutil
from pydantic import ValidationError

from models.errors import InputError
from models.run import Process, RunRecord
from tasks.files import replace_file

RECORD = "run.json"


def read_run(path: Path) -> RunRecord:
    """Read the record in a run's folder.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        return RunRecord.model_validate_json((path / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        remedy = "`align runs` lists the runs; `align run` with the same recipe takes all that is finished"
        raise InputError(f"{path / RECORD}: not a readable run record ({type(error).__name__}); {remedy}") from None


def save_run(record: RunRecord, home: Path) -> RunRecord:
    """Write the record to the run's folder."""
    replace_file(home / "runs" / record.id / RECORD, record.model_dump_json(indent=2))
    return record


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
    """The run to go on with: the one whose name begins or ends so, or the newest that did not complete.

    Raises:
        InputError: there is none, it is completed or still at work, or the name means several.
    """
    records, _ = all_runs(home)
    if wanted is None:
        unfinished = (record for record in records if standing(record) not in ("completed", "running"))
        found = next(unfinished, None)
        if found is None:
            raise InputError(f"there is no unfinished run in {home}; `align run RECIPE` starts one")
        return found
    matches = [record for record in records if record.id.startswith(wanted) or record.id.endswith(wanted)]
    if len(matches) != 1:
        rule = "means several runs" if matches else "means no run"
        names = ", ".join(record.id for record in matches or records) or "none yet"
        raise InputError(f"'{wanted}' {rule} in {home}; give more of a name: {names}")
    (record,) = matches
    if standing(record) == "completed":
        raise InputError(f"run {record.id} is completed; there is nothing to resume")
    if standing(record) == "running" and record.process:
        process = f"process {record.process.pid} on {record.process.host}"
        raise InputError(f"run {record.id} is still at work ({process}); wait for it, or stop that process first")
    return record


def standing(record: RunRecord) -> str:
    """Where a run stands: its recorded state, but `died` where that is `running` and its process is gone."""
    return "died" if record.state == "running" and not _is_alive(record.process) else record.state


def this_process() -> Process:
    """What a record says of the process that carries out its run."""
    return Process(host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time())


def _is_alive(process: Process | None) -> bool:
    """On another machine it is taken to be."""
    if process is None or process.host != socket.gethostname():
        return process is not None
    try:
        found = psutil.Process(process.pid)
        return found.create_time() == process.started and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
