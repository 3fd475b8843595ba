"""How a flow run keeps its record: opened before the first stage, closed by whatever ends it, continued on a retry."""

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from models.artifacts import Stage
from models.errors import InputError
from models.recipe import Recipe
from models.run import RunRecord, RunState
from settings.settings import load_settings
from tasks.run_record import (
    hold_run,
    is_at_work_elsewhere,
    read_run,
    refuse_unless_unfinished,
    release_run,
    save_run,
)
from tasks.stopping import stop_stages_on_signals
from tasks.store import utc_now


def open_run(
    recipe: Recipe,
    recipe_name: str,
    home: Path,
    force: tuple[Stage, ...] = (),
    resume: str | None = None,
    needs: tuple[str, ...] = (),
) -> RunRecord:
    """Start the record of the current flow run; a resumed or retried run goes on with the record that it has.

    Args:
        recipe: What to train.
        recipe_name: What the run is called after.
        home: The artifact root.
        force: Stages to train although they are there; `refuse_impossible` has looked at them.
        resume: The run to go on with.
        needs: Names of the folders that it takes or makes; nothing of them is pruned while it is at work.

    Raises:
        InputError: the run named in `resume` is not there, is at work, completed or one of another recipe.
    """
    flow_run = _current_flow_run()
    known = _run_to_resume(resume, recipe, home) if resume else _run_of_flow_run(flow_run, recipe, home)
    if known:
        record = known.model_copy(update={"state": "running", "error": "", "finished": None, "needs": needs})
    else:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{flow_run[:8]}"
        record = RunRecord(
            id=name,
            state="running",
            recipe=recipe,
            recipe_name=recipe_name,
            force=force,
            started=utc_now(),
            needs=needs,
        )
    hold_run(record.id, home)
    save_run(record, home)
    stop_stages_on_signals(lambda reason: _close(record.id, home, "cancelled", reason), flow_run)
    return record


def refuse_impossible(recipe: Recipe, home: Path, force: tuple[Stage, ...], resume: str | None) -> None:
    """Refuse a run that cannot be, before anything is read for it.

    Raises:
        InputError: the run named in `resume` is not one that `open_run` goes on with, or `force` names a stage that the
            recipe does not have.
    """
    if resume:
        _run_to_resume(resume, recipe, home)
    else:
        _refuse_impossible_force(force, recipe)


def close_failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect hook: note in the record how a run ended that did not complete."""
    home = load_settings().home
    endings: dict[str, RunState] = {"FAILED": "failed", "CRASHED": "crashed", "CANCELLED": "cancelled"}
    name = flow_run.parameters.get("resume")
    if not name:
        known = _run_of_flow_run(str(flow_run.id), None, home)
        name = known.id if known else None
    if name and not is_at_work_elsewhere(name, home):
        with suppress(InputError):  # there is no such record: that is why it failed
            _close(name, home, endings.get(state.type.value, "failed"), state.message or "")


def _close(name: str, home: Path, state: RunState, reason: str) -> bool:
    """Note how a run ended, unless that has been noted: what ended it first is why it ended."""
    record = read_run(home / "runs" / name)
    was_running = record.state == "running"
    if was_running:
        save_run(record.model_copy(update={"state": state, "error": reason, "finished": utc_now()}), home)
    release_run(name)
    return was_running


def _run_to_resume(name: str, recipe: Recipe, home: Path) -> RunRecord:
    record = read_run(home / "runs" / name)
    refuse_unless_unfinished(record, home)
    if record.recipe != recipe:
        raise InputError(f"resume: run {name} has another recipe; leave `resume` empty to start a new run")
    return record


def _run_of_flow_run(flow_run: str, recipe: Recipe | None, home: Path) -> RunRecord | None:
    """The record that this flow run, or an earlier try of it, has opened (for a recipe), where it can be read."""
    for path in (home / "runs").glob(f"*-{flow_run[:8]}"):
        with suppress(InputError):
            record = read_run(path)
            if recipe is None or record.recipe == recipe:
                return record
    return None


def _refuse_impossible_force(force: tuple[Stage, ...], recipe: Recipe) -> None:
    stages = [stage for stage in ("sft", "reward", "dpo", "grpo") if getattr(recipe, stage)]
    for stage in force:
        if stage not in stages:
            raise InputError(f"force: the recipe has no stage '{stage}' to train; it has {', '.join(stages)}")


def _current_flow_run() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else secrets.token_hex(4)
