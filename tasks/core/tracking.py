"""What a tracker is told beside the metrics: which checkpoint comes of the run, and what that is made from."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.stages import TrainingInput
from tasks.core.plan import PROJECT, TrainingPlan
from tasks.core.ranks import is_main

Facts = dict[str, str]


class Lineage(TrainerCallback):
    """Tells every tracker where the run belongs, once it has begun; comes behind the trackers' own callbacks."""

    def __init__(self, trainer: Trainer, stage: TrainingInput, plan: TrainingPlan) -> None:
        self._trainer = trainer
        self._facts = lineage_facts(stage, plan)
        self._trackers = plan.report_to
        if "mlflow" in self._trackers:
            _make_mlflow_database(os.environ.get("MLFLOW_TRACKING_URI", ""))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell the lineage."""
        for name in self._trackers if state.is_world_process_zero else ():
            if name in _TELL:
                _TELL[name](self._trainer, self._facts)


@contextmanager
def ending_runs(trackers: Collection[str]) -> Iterator[None]:
    """End the runs that trackers would end at the interpreter's exit, which a stage's process does not reach.

    One of wandb is open after any training, one of MLflow after a failed one.
    """
    try:
        yield
    except BaseException:
        with suppress(Exception):  # why training failed is what counts
            _end_runs(trackers, failed=True)
        raise
    _end_runs(trackers, failed=False)


def _end_runs(trackers: Collection[str], failed: bool) -> None:
    """End the runs that the process which writes for all has begun."""
    if not is_main():
        return
    if "wandb" in trackers:
        import wandb

        wandb.finish(exit_code=int(failed))
    if "mlflow" in trackers:
        import mlflow

        mlflow.end_run(status="FAILED" if failed else "FINISHED")


def lineage_facts(stage: TrainingInput, plan: TrainingPlan) -> Facts:
    """The checkpoint, its fingerprint, the run of the pipeline, and the parents by role, as their folders are named."""
    parents = {f"align_parent_{role.replace(' ', '_')}": each.path.name for role, each in stage.parents().items()}
    own = {"align_checkpoint": stage.name, "align_stage": stage.stage, "align_fingerprint": stage.fingerprint}
    return own | ({"align_run": plan.run} if plan.run else {}) | parents


def _make_mlflow_database(uri: str) -> None:
    """Let one process at a time make a database of one's own: two that make its tables at once fail."""
    place = uri.removeprefix("sqlite:///")
    if place == uri:
        return
    import mlflow

    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))


def _tell_wandb(trainer: Trainer, facts: Facts) -> None:
    import wandb

    wandb.config.update(facts, allow_val_change=True)


def _tell_mlflow(trainer: Trainer, facts: Facts) -> None:
    import mlflow

    mlflow.set_tags(facts)


def _tell_trackio(trainer: Trainer, facts: Facts) -> None:
    import trackio

    trackio.config.update(facts)


def _tell_tensorboard(trainer: Trainer, facts: Facts) -> None:
    table = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    for callback in trainer.callback_handler.callbacks:
        if writer := getattr(callback, "tb_writer", None):
            writer.add_text("lineage", f"| what | is |\n|---|---|\n{table}")
            writer.flush()


_TELL: dict[str, Callable[[Trainer, Facts], None]] = {
    "wandb": _tell_wandb,
    "mlflow": _tell_mlflow,
    "trackio": _tell_trackio,
    "tensorboard": _tell_tensorboard,
}
