"""Supervised fine-tuning as a Prefect task; the training itself is in `tasks.core.sft`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint
from models.stages import SFTInput
from tasks.core.entry import sft
from tasks.execution import Execution
from tasks.stage import RETRIES, run_stage, worth_another_attempt


@task(
    name="train-sft",
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_condition_fn=worth_another_attempt,
)
def train_sft(stage: SFTInput, execution: Execution) -> Checkpoint:
    """Train the base model, so that it answers as the demonstrations do.

    Raises:
        InputError, OutOfMemory, Killed, StageError: see `tasks.stage.run_stage`.
    """
    return run_stage(stage, sft, execution)
