"""The ledger of a stage: every attempt, kept beside the unfinished checkpoint from its first moment.

Neither a crash nor a retry of the whole flow forgets what was tried: an attempt is noted as running before it starts,
and one that was never noted as ended has died with its process.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from models.artifacts import Attempt, Outcome
from models.errors import Killed, OutOfMemory, StageError, Stopped
from models.stages import TrainingInput
from tasks.core.plan import TrainingPlan, split_batch
from tasks.energy import EnergyMeter
from tasks.execution import Execution
from tasks.files import replace_file
from tasks.fits import Fit, weights_bytes
from tasks.launch import check_batch
from tasks.store import utc_now
from tasks.vllm import vllm_plan

LEDGER = "attempts.jsonl"


def read_attempts(workspace: Path) -> tuple[Attempt, ...]:
    """All attempts so far, oldest first; what cannot be read any more is left out."""
    path = workspace / LEDGER
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    attempts = []
    for line in lines:
        with suppress(ValidationError):
            attempts.append(Attempt.model_validate_json(line))
    return tuple(attempts)


def plan_attempt(
    stage: TrainingInput, attempts: tuple[Attempt, ...], execution: Execution, fit: Fit | None = None
) -> TrainingPlan:
    """The split of the effective batch for the next attempt: half of the micro-batch that last ran out of memory.

    A training process that was killed twice at one size is taken to have run out of memory, whoever killed it. Where
    one row does not fit, activations are recomputed from then on.

    Args:
        stage: What to train.
        attempts: All attempts so far.
        execution: The machine's part.
        fit: What fitted the last time.

    Raises:
        InputError: the processes cannot share the batch equally.
        StageError: one row alone did not fit, with activations recomputed.
    """
    settings = execution.settings
    sizes = {wanted: _too_large(attempts, wanted, execution.run) for wanted in (False, True)}
    checkpointing = settings.gradient_checkpointing or bool(fit and fit.gradient_checkpointing) or 1 in sizes[False]
    if 1 in sizes[checkpointing]:
        raise StageError(_advice(stage, attempts, execution))
    known = (settings.per_device_train_batch_size, fit.per_device_train_batch_size if fit else None)
    limits = [size for size in known if size] + [size // 2 for size in sizes[checkpointing]]
    limits += [1] if 1 in sizes[False] else []
    launch, batch_size = execution.launch, stage.hyperparameters.batch_size
    check_batch(stage.stage, batch_size, launch)
    micro, accumulation = split_batch(batch_size // launch.world, min(limits, default=None))
    return TrainingPlan(
        device=execution.machine.device,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        processes=launch.world,
        sharding=settings.sharding,
        gradient_checkpointing=checkpointing,
        share_prompts=settings.share_prompts,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        checkpoint_every_minutes=settings.checkpoint_every_minutes,
        checkpoints_kept=settings.checkpoints_kept,
        report_to=settings.report_to,
        run=execution.run,
        vllm=vllm_plan(stage, settings),
    )


def _too_large(attempts: tuple[Attempt, ...], checkpointing: bool, run: str) -> set[int]:
    """Micro-batches that ran out of memory, with or without recomputing activations.

    Of earlier runs neither kills count, which may have had other reasons, nor single rows: there may be more memory.
    """
    sizes = []
    for each in attempts:
        rows = each.per_device_train_batch_size
        counts = each.run == run or (each.outcome == "out_of_memory" and rows > 1)
        if counts and each.gradient_checkpointing == checkpointing:
            sizes += [(rows, each.outcome)]
    killed = [rows for rows, outcome in sizes if outcome == "killed"]
    return {rows for rows, outcome in sizes if outcome == "out_of_memory" or killed.count(rows) > 1}


def _advice(stage: TrainingInput, attempts: tuple[Attempt, ...], execution: Execution) -> str:
    """What to change where a single row does not fit, with figures."""
    asked = stage.hyperparameters
    halved = {
        key: getattr(asked, key)
        for key in ("max_length", "max_completion_length", "num_generations")
        if hasattr(asked, key)
    }
    changes = [f"{key} from {value} to {value // 2}" for key, value in halved.items() if value > 2]
    changes += [] if asked.lora else ["full fine-tuning to LoRA (`lora: {}`)"]
    weights = weights_bytes(stage.policy) / 1e9
    if asked.lora and not stage.quantization and weights > 0.1:  # less would help nobody
        changes += [f"the {weights:.1f} GB of frozen weights to about a quarter, in 4 bits (`quantization: {{}}`)"]
    peak = max(each.peak_memory_bytes for each in attempts)
    seen = f"; {peak / 1e9:.1f} GB were in use" if peak else ""
    there = execution.settings.memory_limit_bytes or execution.machine.memory_bytes
    return (
        f"out of memory with one row at a time and recomputed activations{seen}, {there / 1e9:.1f} GB are there; "
        f"change {', or '.join(changes)}, or take a smaller base model"
    )


class AttemptRecorder:
    """Context of one attempt: on entering it is noted as running, on leaving with how it ended."""

    def __init__(
        self, workspace: Path, plan: TrainingPlan, execution: Execution, listener: Callable[[dict[str, Any]], None]
    ) -> None:
        self._workspace = workspace
        self._plan = plan
        self._execution = execution
        self._listener = listener
        self._first_step: int | None = None
        self._step = 0
        self._peak_bytes = 0
        self._training: tuple[float, float] | None = None

    def __enter__(self) -> "AttemptRecorder":
        self._started = utc_now()
        self._clock = time.monotonic()
        self._energy = EnergyMeter()
        self._earlier = tuple(
            earlier.model_copy(update={"outcome": "died"}) if earlier.outcome == "running" else earlier
            for earlier in read_attempts(self._workspace)
        )
        self._note("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cause = next(iter(str(error).splitlines()), type(error).__name__) if error else ""
        try:
            self._note(_outcome(error), cause)
        except OSError:
            if not error:  # on a full disk the note is lost, but not the error that says so
                raise

    def report(self, said: dict[str, Any]) -> None:
        """Pass a report of the training process on, and see from it how far the attempt has come."""
        if said.get("total_steps"):
            self._step = said["step"]
            self._first_step = self._step if self._first_step is None else self._first_step
            now = time.monotonic()
            self._training = (self._training[0] if self._training else now, now)
        self._listener(said)

    def note_peak(self, peak_bytes: int) -> None:
        """See how much memory the training process has taken at most so far."""
        self._peak_bytes = peak_bytes

    def _note(self, outcome: Outcome, cause: str = "") -> None:
        attempt = Attempt(
            per_device_train_batch_size=self._plan.per_device_train_batch_size,
            gradient_accumulation_steps=self._plan.gradient_accumulation_steps,
            gradient_checkpointing=self._plan.gradient_checkpointing,
            share_prompts=self._plan.share_prompts,
            processes=self._plan.processes,
            sharding=self._plan.sharding,
            run=self._execution.run,
            machine=self._execution.machine.name,
            device=self._execution.machine.device,
            started=self._started,
            seconds=time.monotonic() - self._clock,
            training_seconds=self._training[1] - self._training[0] if self._training else 0.0,
            outcome=outcome,
            cause=cause,
            resumed_from_step=self._first_step or 0,
            reached_step=self._step,
            peak_memory_bytes=self._peak_bytes,
            energy_joules=self._energy.joules(),
        )
        lines = "".join(noted.model_dump_json() + "\n" for noted in (*self._earlier, attempt))
        replace_file(self._workspace / LEDGER, lines)


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "completed"
    if isinstance(error, OutOfMemory):
        return "out_of_memory"
    if isinstance(error, Killed):
        return "killed"
    return "cancelled" if isinstance(error, Stopped) or not isinstance(error, Exception) else "failed"
