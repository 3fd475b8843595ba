"""What every training stage does around its training: plan the attempt, train in a child, publish what came of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from models.artifacts import Attempt, Checkpoint, Manifest
from models.errors import Killed, OutOfMemory
from models.stages import TrainingInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.plan import TrainingResult
from tasks.execution import Execution
from tasks.fits import recall, remember
from tasks.gathering import gathered
from tasks.ledger import AttemptRecorder, plan_attempt, read_attempts
from tasks.making import find_or_make
from tasks.provenance import provenance, public_source
from tasks.store import ArtifactStore
from tasks.telling import Teller
from tasks.trackers import tracker_environment

RETRIES = 10
"""Times that Prefect tries a stage again after it ran out of memory or was killed."""
LIGHT_RETRIES = 3
"""Times that Prefect tries an evaluation or a conversion again."""


def worth_another_attempt(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition: another attempt may go another way after want of memory or a kill, and only then."""
    return isinstance(state.result(raise_on_failure=False), OutOfMemory | Killed)


def was_killed(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition for what cannot be made smaller."""
    return isinstance(state.result(raise_on_failure=False), Killed)


def run_stage(stage: TrainingInput, train: Callable[..., TrainingResult], execution: Execution) -> Checkpoint:
    """Make the checkpoint that a stage's input leads to, unless it is there.

    Args:
        stage: What to train.
        train: The stage's door in `tasks.core.entry`: `(stage, plan, workspace, report) -> TrainingResult`.
        execution: The machine's part.

    Returns:
        The checkpoint; see `tasks.making.find_or_make`.

    Raises:
        InputError: what was asked for cannot work.
        OutOfMemory, Killed: the next call goes on, with half the micro-batch where memory ran out.
        StageError: it failed.
    """
    execution = execution.of_training()

    def read(path: Path, manifest: Manifest) -> Checkpoint:
        return Checkpoint(
            path=path,
            fingerprint=manifest.fingerprint,
            stage=stage.stage,
            precision=stage.precision,
            metrics=manifest.metrics,
        )

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        workspace = store.partial("checkpoint", stage.name)
        result = _train(stage, train, workspace, execution, options, teller)
        teller.report({"phase": "publishing"})
        return _publish(stage, result, workspace, execution, store)

    return find_or_make("checkpoint", stage.name, execution, make, read)


def _train(
    stage: TrainingInput,
    train: Callable[..., TrainingResult],
    workspace: Path,
    execution: Execution,
    options: ChildOptions,
    teller: Teller,
) -> TrainingResult:
    """One attempt, noted in the ledger however it ends."""
    earlier = read_attempts(workspace)
    plan = plan_attempt(stage, earlier, execution, recall(stage, execution))
    teller.attempt(plan, workspace / "log.txt")
    options = options.model_copy(update={"environment": tracker_environment(execution, stage.name)})
    with (
        AttemptRecorder(workspace, plan, execution, teller.report) as attempt,
        gathered(stage, plan, workspace, execution, teller.waiting) as post,
    ):
        options = options.model_copy(update={"post": post})
        result: TrainingResult = run_in_child(
            train, (stage, plan, workspace), options, attempt.report, teller.line, attempt.note_peak
        )
    if plan.per_device_train_batch_size < max((tried.per_device_train_batch_size for tried in earlier), default=0):
        remember(stage, execution, plan)
    return result


def _publish(
    stage: TrainingInput, result: TrainingResult, workspace: Path, execution: Execution, store: ArtifactStore
) -> Manifest:
    attempts = read_attempts(workspace)
    manifest = store.publish(
        workspace / "model",
        name=stage.name,
        kind="checkpoint",
        fingerprint=stage.fingerprint,
        identity=stage.identity(),
        parents={role: parent.path.name for role, parent in stage.parents().items()},
        origin={"system_prompt": stage.system_prompt, "dataset": public_source(stage.hyperparameters.dataset)}
        | stage.admission(),
        metrics=result.metrics | _totals(attempts),
        attempts=attempts,
        **provenance(execution),
    )
    store.discard_partial("checkpoint", stage.name)
    return manifest


def _totals(attempts: tuple[Attempt, ...]) -> dict[str, float]:
    peak = max(attempt.peak_memory_bytes for attempt in attempts)
    known = [attempt.energy_joules for attempt in attempts if attempt.energy_joules is not None]
    energy = {"energy_joules": sum(known)} if known else {}
    return {"seconds": sum(attempt.seconds for attempt in attempts), "peak_memory_bytes": float(peak)} | energy
