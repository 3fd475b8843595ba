"""What fitted into memory: where a stage came down to a smaller micro-batch, the next one of its shape starts there.

Kept in the artifact root, a file for each machine and job shape; `align forget` removes them.
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.artifacts import Checkpoint
from models.contract import Contract
from models.fingerprint import ID_LENGTH, fingerprint
from models.stages import TrainingInput
from tasks.core.plan import TrainingPlan
from tasks.execution import Execution
from tasks.files import replace_file

_SHAPE = {
    "lora", "max_length", "packing", "num_generations", "max_completion_length", "beta", "loss_type", "sft_weight",
}  # fmt: skip
"""Hyperparameters that decide how much memory a row takes."""


class Fit(Contract):
    """The largest micro-batch that went through, after a larger one did not."""

    per_device_train_batch_size: int
    """Rows at once."""
    gradient_checkpointing: bool
    """Whether activations were recomputed."""


def recall(stage: TrainingInput, execution: Execution) -> Fit | None:
    """What fitted the last time, where memory ran out on the way."""
    try:
        return Fit.model_validate_json(_file(stage, execution).read_bytes())
    except (OSError, ValidationError):
        return None


def remember(stage: TrainingInput, execution: Execution, plan: TrainingPlan) -> None:
    """Note that a stage went through with this plan."""
    fit = Fit(
        per_device_train_batch_size=plan.per_device_train_batch_size, gradient_checkpointing=plan.gradient_checkpointing
    )
    replace_file(_file(stage, execution), fit.model_dump_json(indent=2))


def forget(home: Path) -> int:
    """Remove all notes, and return how many there were."""
    folder = home / "fits"
    count = len(list(folder.glob("*.json")))
    shutil.rmtree(folder, ignore_errors=True)
    return count


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Size of a model's files of weights."""
    return sum(path.stat().st_size for path in checkpoint.path.glob("*.safetensors"))


def _file(stage: TrainingInput, execution: Execution) -> Path:
    machine, weights = execution.machine, weights_bytes(stage.policy)
    shape: dict[str, Any] = {
        "machine": [machine.device, machine.name, machine.memory_bytes, execution.settings.memory_limit_bytes],
        "stage": [stage.stage, stage.precision, weights],
        "quantization": stage.quantization and stage.quantization.model_dump(mode="json"),
        "hyperparameters": stage.hyperparameters.model_dump(mode="json", include=_SHAPE),
    }
    if execution.launch.world > 1:
        shape["processes"] = [execution.launch.world, execution.settings.sharding]
    return execution.settings.home / "fits" / f"{stage.stage}-{fingerprint(shape)[:ID_LENGTH]}.json"
