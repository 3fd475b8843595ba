"""Direct Preference Optimization as a Prefect task; the training itself is in `tasks.core.dpo`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint
from models.stages import DPOInput
from tasks.core.entry import dpo
from tasks.execution import Execution
from tasks.stage import RETRIES, run_stage, worth_another_attempt


@task(
    name="train-dpo",
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_condition_fn=worth_another_attempt,
)
def train_dpo(stage: DPOInput, execution: Execution) -> Checkpoint:
    """Train the SFT model to prefer the chosen answers.

    Raises:
        InputError, OutOfMemory, Killed, StageError: see `tasks.stage.run_stage`.
    """
    return run_stage(stage, dpo, execution)
