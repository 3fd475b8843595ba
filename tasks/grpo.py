"""Group Relative Policy Optimization as a Prefect task; the training itself is in `tasks.core.grpo`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint
from models.stages import GRPOInput
from tasks.core.entry import grpo
from tasks.execution import Execution
from tasks.stage import RETRIES, run_stage, worth_another_attempt


@task(
    name="train-grpo",
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_condition_fn=worth_another_attempt,
)
def train_grpo(stage: GRPOInput, execution: Execution) -> Checkpoint:
    """Train the last policy on rewards for its own answers.

    Raises:
        InputError, OutOfMemory, Killed, StageError: see `tasks.stage.run_stage`.
    """
    return run_stage(stage, grpo, execution)
