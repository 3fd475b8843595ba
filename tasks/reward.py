"""Reward modelling as a Prefect task; the training itself is in `tasks.core.reward`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint
from models.stages import RewardInput
from tasks.core.entry import reward
from tasks.execution import Execution
from tasks.stage import RETRIES, run_stage, worth_another_attempt


@task(
    name="train-reward-model",
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_condition_fn=worth_another_attempt,
)
def train_reward_model(stage: RewardInput, execution: Execution) -> Checkpoint:
    """Train a scorer of answers from preference pairs.

    Raises:
        InputError, OutOfMemory, Killed, StageError: see `tasks.stage.run_stage`.
    """
    return run_stage(stage, reward, execution)
