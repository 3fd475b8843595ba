"""Train a checkpoint again, with all stages that it descends from, and say whether the weights came out the same."""

import shutil

from prefect import Task, flow
from prefect.runtime import flow_run

from models.artifacts import Artifact, Checkpoint
from models.data_rules import DataRules
from models.preparation import Cleaning
from models.reproduction import Reproduction
from settings.settings import load_settings
from tasks.base_model import prepare_base_model
from tasks.dataset import prepare_dataset
from tasks.dpo import train_dpo
from tasks.execution import Execution
from tasks.grpo import train_grpo
from tasks.remote.opening import open_store
from tasks.reproduced import compare
from tasks.reproducing import (
    Step,
    ancestry,
    as_it_was,
    base_model_source,
    dataset_source,
    found_whole,
    refuse_other_content,
    scratch_execution,
    training_input,
)
from tasks.reward import train_reward_model
from tasks.sft import train_sft
from tasks.stopping import stop_stages_on_signals

_TRAIN: dict[str, Task[..., Checkpoint]] = {
    "sft": train_sft,
    "reward": train_reward_model,
    "dpo": train_dpo,
    "grpo": train_grpo,
}


@flow(name="reproduce")
def reproduce(checkpoint: str) -> Reproduction:
    """Train a checkpoint again from its manifest alone; interrupted, the next call goes on.

    Args:
        checkpoint: A folder, a stage (its newest), or the beginning of a name.
    """
    settings = load_settings()
    store = open_store(settings)
    steps = ancestry(store, checkpoint)
    scratch = scratch_execution(steps, settings)
    stop_stages_on_signals(lambda reason: False, str(flow_run.id))
    made: dict[str, Artifact] = {}
    stages = []
    for step in steps:
        if step.record.kind == "checkpoint":
            trained: Checkpoint = (
                _TRAIN[step.record.identity["stage"]]
                .submit(training_input(step, made), as_it_was(step, scratch))
                .result()
            )
            made[step.name] = trained
            stages.append(compare(step, trained, store, scratch))
        else:
            made[step.name] = found_whole(step, store) or _fetch(step, scratch)
    shutil.rmtree(scratch.settings.home)
    return Reproduction(checkpoint=steps[-1].name, stages=tuple(stages))


def _fetch(step: Step, execution: Execution) -> Artifact:
    """Make a base model or snapshot again that is not in the artifact root any more."""
    if step.record.kind == "base":
        made: Artifact = prepare_base_model.submit(base_model_source(step), execution).result()
    else:
        rules = step.record.origin.get("rules", {})
        cleaning = Cleaning(rules=DataRules.model_validate(rules.get("data_rules", {})))
        asked = (dataset_source(step), step.role, rules.get("system_prompt"), execution, (), cleaning)
        made = prepare_dataset.submit(*asked).result()
    refuse_other_content(step, made)
    return made
