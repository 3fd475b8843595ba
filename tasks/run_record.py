"""The record of a run: opened before the first stage, closed by whatever ends the run."""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from models.recipe import Recipe
from models.run import RunRecord, RunState
from settings.settings import load_settings
from tasks.store import utc_now


def open_run(recipe: Recipe, recipe_name: str, home: Path) -> RunRecord:
    """Start the record of the current flow run; a retried flow run goes on with the record that it has."""
    run_id = _current_run_id()
    existing = list((home / "runs").glob(f"*-{run_id}/run.json"))
    if existing:
        record = RunRecord.model_validate_json(existing[0].read_bytes())
        return save_run(record.model_copy(update={"state": "running", "error": "", "finished": None}), home)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run_id}"
    return save_run(
        RunRecord(id=name, state="running", recipe=recipe, recipe_name=recipe_name, started=utc_now()), home
    )


def save_run(record: RunRecord, home: Path) -> RunRecord:
    """Write the record; readers see the old one or the new one, never half of one."""
    folder = home / "runs" / record.id
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".run.json"
    unfinished.write_text(record.model_dump_json(indent=2))
    unfinished.rename(folder / "run.json")
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
