"""The record of a run: opened before the first stage, closed by whatever ends the run."""

import secrets
import signal
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from models.recipe import Recipe
from models.run import RunRecord, RunState
from settings.settings import load_settings
from tasks.child import stop_all
from tasks.store import replace_file, utc_now


def open_run(recipe: Recipe, recipe_name: str, home: Path) -> RunRecord:
    """Start the record of the current flow run; a retried flow run goes on with the record that it has."""
    run_id = _current_run_id()
    existing = list((home / "runs").glob(f"*-{run_id}/run.json"))
    if existing:
        record = RunRecord.model_validate_json(existing[0].read_bytes())
        record = record.model_copy(update={"state": "running", "error": "", "finished": None})
    else:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run_id}"
        record = RunRecord(id=name, state="running", recipe=recipe, recipe_name=recipe_name, started=utc_now())
    save_run(record, home)
    _stop_stages_on_signals(record.id, home)
    return record


def _stop_stages_on_signals(run_id: str, home: Path) -> None:
    """On SIGINT and SIGTERM, end the training processes and note it, before whatever else the signal does.

    Without it, a flow that is told to stop would wait for its stages to train to the end. Signals belong to the main
    thread; a flow that runs in another one is left alone.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, partial(_stop_stages, run_id, home, signal.getsignal(number)))


def _stop_stages(run_id: str, home: Path, previous: Any, number: int, frame: FrameType | None) -> None:
    stop_all()
    record = read_run(run_id, home)
    if record.state == "running":  # the handler outlives the run that set it
        reason = f"stopped by {signal.Signals(number).name}"
        save_run(record.model_copy(update={"state": "cancelled", "error": reason, "finished": utc_now()}), home)
    if callable(previous):
        previous(number, frame)


def read_run(run_id: str, home: Path) -> RunRecord:
    """Read the record of a run."""
    return RunRecord.model_validate_json((home / "runs" / run_id / "run.json").read_bytes())


def save_run(record: RunRecord, home: Path) -> RunRecord:
    """Write the record to the run's folder."""
    replace_file(home / "runs" / record.id / "run.json", record.model_dump_json(indent=2))
    return record


def close_failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect hook: note in the record how a run ended that did not complete."""
    home = load_settings().home
    endings: dict[str, RunState] = {"FAILED": "failed", "CRASHED": "crashed", "CANCELLED": "cancelled"}
    for path in (home / "runs").glob(f"*-{_short(str(flow_run.id))}/run.json"):
        record = RunRecord.model_validate_json(path.read_bytes())
        ending = {"state": endings.get(state.type.value, "failed"), "error": state.message or "", "finished": utc_now()}
        save_run(record.model_copy(update=ending), home)


def _current_run_id() -> str:
    context = FlowRunContext.get()
    return _short(str(context.flow_run.id)) if context and context.flow_run else secrets.token_hex(4)


def _short(flow_run_id: str) -> str:
    return flow_run_id[:8]
