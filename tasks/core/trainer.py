"""What the four trainers share: their common arguments, reporting, resuming, and the order of a training stage."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from models.errors import StageError, Stopped
from models.stages import TrainingInput
from tasks.alarms import write_alarms
from tasks.checkpoints import TRAINER, discard_after, last_whole_checkpoint
from tasks.core.plan import PROJECT, TrainingPlan
from tasks.core.quantization import restore_trained_formats
from tasks.core.ranks import distribution_arguments, is_finite, is_main
from tasks.core.saving import Saver
from tasks.core.tracking import Lineage, ending_runs
from tasks.core.watching import Watcher

Report = Callable[[dict[str, Any]], None]
_SUMMARY = "train_runtime"
"""In the log's last entry, which is about the whole training."""


class Workspace:
    """Folders of an unfinished stage."""

    def __init__(self, path: Path) -> None:
        self.trainer = path / TRAINER
        self.model = path / "model"
        self.adapter = self.model / "adapter"
        self.history = self.model / "history.jsonl"


def trainer_arguments(stage: TrainingInput, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """Arguments that every TRL configuration takes, from the stage's hyperparameters and the machine's plan."""
    asked = stage.hyperparameters
    on_cpu = plan.device == "cpu"
    return {
        "output_dir": str(folder),
        "learning_rate": asked.learning_rate,
        "num_train_epochs": asked.num_train_epochs,
        "max_steps": asked.max_steps or -1,
        "lr_scheduler_type": asked.lr_scheduler_type,
        "warmup_steps": asked.warmup_ratio,  # below 1, Transformers takes it as a share of the steps
        "weight_decay": asked.weight_decay,
        "adam_beta1": asked.adam_beta1,
        "adam_beta2": asked.adam_beta2,
        "max_grad_norm": asked.max_grad_norm,
        "per_device_train_batch_size": plan.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "activation_checkpointing": plan.gradient_checkpointing,
        "seed": stage.seed,
        "data_seed": stage.seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        # On a CPU the model's own number format decides; mixed precision would only cast back and forth.
        "bf16": stage.precision == "bf16" and not on_cpu,
        "fp16": stage.precision == "fp16",
        "save_strategy": "no",  # see `tasks.core.saving`
        "save_total_limit": plan.checkpoints_kept,
        "logging_steps": 0.005,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would put earlier losses in place of one that is not finite
        "report_to": list(plan.report_to),
        "run_name": stage.name,
        "project": PROJECT,
        "disable_tqdm": True,
        **distribution_arguments(plan),
    }


def train(trainer: Trainer, stage: TrainingInput, plan: TrainingPlan, workspace: Workspace, report: Report) -> int:
    """Train to the end, from the last whole trainer checkpoint where there is one.

    Returns:
        The step that training went on from; 0: from the start.

    Raises:
        Stopped: SIGTERM came; a checkpoint of the last step is kept.
        StageError: an alarm stopped the stage, weights are not finite, or a checkpoint was there and was not taken up.
    """
    with trainer.accelerator.main_process_first():
        checkpoint, seconds_before = _take_stock(workspace.trainer)
    progress, saver = _Reporter(report), Saver(plan, seconds_before)
    watcher = Watcher(stage, getattr(trainer, "reward_func_names", ()), report)
    for callback in (progress, saver, watcher, Lineage(trainer, stage, plan)):
        trainer.add_callback(callback)
    restore_trained_formats(trainer.model, mixed_precision=trainer.args.bf16 or trainer.args.fp16)
    if checkpoint and _is_last(checkpoint):
        _take_up(trainer, checkpoint)
        for reader in (progress, watcher):
            reader.on_train_begin(trainer.args, trainer.state, trainer.control)
    else:
        with saver.heeding_sigterm(), _clearing_up(workspace.trainer), ending_runs(plan.report_to):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if saver.told_to_stop:
        raise Stopped(f"stopped on request after step {trainer.state.global_step} of {trainer.state.max_steps}")
    if checkpoint and not progress.first_step:
        raise StageError(f"{checkpoint.name} was there, but training started from step 0; delete {workspace.trainer}")
    watcher.finish(trainer.state)
    if not is_finite(trainer.model):
        raise StageError("training diverged: weights are not finite; lower the learning rate")
    if is_main():
        _write_history(trainer, workspace)
        write_alarms(workspace.model, watcher.raised)
    return progress.first_step


def _take_stock(folder: Path) -> tuple[Path | None, float]:
    """The checkpoint to go on from, and the seconds that went into it; what lies behind it is removed."""
    found = last_whole_checkpoint(folder)
    checkpoint = found[0] if found else None
    for name in discard_after(folder, checkpoint):
        print(f"{name} is not whole; going on from {checkpoint.name if checkpoint else 'the start'}")  # noqa: T201
    return checkpoint, found[1].seconds if found else 0.0


@contextmanager
def _clearing_up(folder: Path) -> Iterator[None]:
    """Where training fails, leave no half of a checkpoint: on a full disk its place is needed."""
    try:
        yield
    except Exception:
        if is_main():
            _take_stock(folder)
        raise


def _is_last(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return bool(state.global_step >= state.max_steps)


def _take_up(trainer: Trainer, checkpoint: Path) -> None:
    """Load weights and state of a training that was done; resuming it would train one step too many."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def _write_history(trainer: Trainer, workspace: Workspace) -> None:
    """Start the model's folder anew, with the trainer's log in it."""
    shutil.rmtree(workspace.model, ignore_errors=True)
    workspace.model.mkdir(parents=True)
    history = [entry for entry in trainer.state.log_history if _SUMMARY not in entry]
    workspace.history.write_text("".join(json.dumps(entry) + "\n" for entry in history))


class _Reporter(TrainerCallback):
    """Sends figures and time left to the parent."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._started = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.monotonic()
        self.first_step = state.global_step
        self._report({"phase": "training", "step": state.global_step, "total_steps": state.max_steps})

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: dict[str, Any], **_: Any
    ) -> None:
        if _SUMMARY in logs:
            return
        done = state.global_step - self.first_step
        left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step) if done else None
        metrics = {
            key: float(value) for key, value in logs.items() if isinstance(value, int | float) and isfinite(value)
        }
        self._report(
            {
                "phase": "training",
                "step": state.global_step,
                "total_steps": state.max_steps,
                "metrics": metrics,
                "seconds_left": left,
            }
        )
