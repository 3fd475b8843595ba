"""The ledger of a stage: every attempt, kept beside the unfinished checkpoint.

Neither a crash nor a retry of the whole flow forgets what was tried.
"""

import time
from pathlib import Path
from types import TracebackType

from models.artifacts import Attempt
from models.errors import OutOfMemory, Stopped
from tasks.core.plan import TrainingPlan, halve, split_batch
from tasks.execution import Execution
from tasks.store import replace_file, utc_now

LEDGER = "attempts.jsonl"


def read_attempts(workspace: Path) -> tuple[Attempt, ...]:
    """All attempts so far, oldest first."""
    path = workspace / LEDGER
    lines = path.read_text().splitlines() if path.exists() else []
    return tuple(Attempt.model_validate_json(line) for line in lines)


def plan_attempt(batch_size: int, attempts: tuple[Attempt, ...], execution: Execution) -> TrainingPlan:
    """The split of the effective batch for the next attempt: half of the micro-batch that last ran out of memory.

    Raises:
        StageError: one row alone did not fit.
    """
    settings = execution.settings
    micro = split_batch(batch_size, settings.per_device_train_batch_size)[0]
    failed = [
        attempt.per_device_train_batch_size
        for attempt in attempts
        if attempt.outcome == "out_of_memory" and attempt.gradient_checkpointing == settings.gradient_checkpointing
    ]
    if failed and min(failed) <= micro:
        micro = halve(min(failed), batch_size)
    return TrainingPlan(
        device=execution.machine.device,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch_size // micro,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        report_to=settings.report_to,
    )


class AttemptRecorder:
    """Context of one attempt; on leaving it, the attempt is added to the ledger with how it ended."""

    def __init__(self, workspace: Path, plan: TrainingPlan) -> None:
        self._workspace = workspace
        self._plan = plan
        self.resumed_from_step = 0
        self.peak_memory_bytes = 0

    def __enter__(self) -> "AttemptRecorder":
        self._started = utc_now()
        self._clock = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attempts = (*read_attempts(self._workspace), self._attempt(error))
        lines = "".join(attempt.model_dump_json() + "\n" for attempt in attempts)
        replace_file(self._workspace / LEDGER, lines)

    def _attempt(self, error: BaseException | None) -> Attempt:
        return Attempt(
            per_device_train_batch_size=self._plan.per_device_train_batch_size,
            gradient_accumulation_steps=self._plan.gradient_accumulation_steps,
            gradient_checkpointing=self._plan.gradient_checkpointing,
            started=self._started,
            seconds=time.monotonic() - self._clock,
            outcome=_outcome(error),
            cause=next(iter(str(error).splitlines()), type(error).__name__) if error else "",
            resumed_from_step=self.resumed_from_step,
            peak_memory_bytes=self.peak_memory_bytes,
        )


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    if isinstance(error, OutOfMemory):
        return "out_of_memory"
    return "cancelled" if isinstance(error, Stopped) or not isinstance(error, Exception) else "failed"
