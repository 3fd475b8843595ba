"""What a run would take, go on with and train: the names of its checkpoints are known before anything is trained.

The hand-over is that of `flows.align`, with promised checkpoints in place of made ones.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from models.artifacts import Checkpoint, Dataset, Stage
from models.contract import Contract
from models.fingerprint import ID_LENGTH
from models.recipe import Recipe
from models.stages import BaseModelInput, DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.base_model_check import locate
from tasks.checkpoints import TRAINER, last_whole_checkpoint
from tasks.data.checking import DatasetCheck
from tasks.execution import Execution
from tasks.fits import recall
from tasks.pruned import is_pruned
from tasks.remote.opening import open_store
from tasks.restoring import obstacle
from tasks.reward_functions import function_digests
from tasks.scorer_check import find_scorer
from tasks.store import damage, read_manifest


class StageForecast(Contract):
    """What a run would do with a stage."""

    stage: Stage
    """The stage."""
    name: str
    """Name of its checkpoint."""
    state: Literal["cached", "rebuilds", "resumes", "new", "damaged"]
    """Whether the checkpoint is taken as it is, its pruned weights are merged anew, an interrupted training goes on,
    training starts, or what is there is moved aside first."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps in all, where training has begun."""
    saved_seconds: float = 0.0
    """Time that went into what is there."""
    fitted_batch_size: int | None = None
    """Micro-batch that training starts with, because a larger one ran out of memory before; none: the usual one."""


def forecast(recipe: Recipe, datasets: Iterable[DatasetCheck], execution: Execution) -> list[StageForecast]:
    """Look up every training stage of a recipe in the artifact root; nothing is changed.

    Args:
        recipe: What would be trained.
        datasets: Its datasets, as preflight has found them.
        execution: The machine's part, with the run and the stages to force where there are any.
    """
    return [_look_up(stage, execution) for stage in stage_inputs(recipe, datasets, execution)]


def stage_inputs(
    recipe: Recipe, datasets: Iterable[DatasetCheck], execution: Execution, offline: bool = False
) -> Iterator[TrainingInput]:
    """The inputs of a recipe's training stages, in order, with promised checkpoints and snapshots.

    Args:
        recipe: What would be trained.
        datasets: Its datasets, as preflight has found them.
        execution: The machine's part.
        offline: Ask no hub: models there are told by their names alone, and the stages have other names than in a run.
    """
    store = open_store(execution.settings)
    common = execution.shared_inputs(recipe)
    rows = {
        check.place: Dataset(
            path=store.folder("dataset", check.fingerprint[:ID_LENGTH]),
            fingerprint=check.fingerprint,
            rows=check.rows,
            source=check.path,
        )
        for check in datasets
    }

    def promised(stage: TrainingInput) -> Checkpoint:
        path = store.folder("checkpoint", stage.name)
        return Checkpoint(path=path, fingerprint=stage.fingerprint, stage=stage.stage, precision=stage.precision)

    unasked = offline and recipe.base_model.source == "hub"
    origin = {"hub": recipe.base_model.name} if unasked else locate(recipe.base_model)[1]
    base = BaseModelInput(source=recipe.base_model, origin=origin, precision=execution.precision).fingerprint
    policy = Checkpoint(
        path=store.folder("base", base[:ID_LENGTH]), fingerprint=base, stage="base", precision=execution.precision
    )
    sft = SFTInput(policy=policy, dataset=rows["sft.dataset"], hyperparameters=recipe.sft, **common)
    yield sft
    policy, reward_model = promised(sft), None
    if recipe.reward:
        pairs = rows["reward.dataset"]
        reward = RewardInput(policy=policy, dataset=pairs, hyperparameters=recipe.reward, **common)
        reward_model = promised(reward)
        yield reward
    if recipe.dpo:
        dpo = DPOInput(policy=policy, dataset=rows["dpo.dataset"], hyperparameters=recipe.dpo, **common)
        policy = promised(dpo)
        yield dpo
    if recipe.grpo:
        prompts = rows["grpo.dataset"]
        others = recipe.grpo.other_reward_models
        scorers = {each.label: find_scorer(each, store, execution.precision, offline).checkpoint for each in others}
        asked: dict[str, Any] = {"policy": policy, "reward_model": reward_model, "hyperparameters": recipe.grpo}
        asked["generator"] = execution.generator
        yield GRPOInput(dataset=prompts, functions=function_digests(recipe.grpo), scorers=scorers, **asked, **common)


def _look_up(stage: TrainingInput, execution: Execution) -> StageForecast:
    store = open_store(execution.settings)
    path = store.folder("checkpoint", stage.name)
    damaged = path.exists() and bool(damage(path))
    if path.exists() and not damaged:
        manifest = read_manifest(path)
        taken = stage.stage not in execution.force or manifest.run == execution.run
        is_remote = store.remote and store.remote.has(path)
        if taken and not obstacle(store, path):
            state = "rebuilds" if is_pruned(path) and not is_remote else "cached"
            seconds = manifest.metrics.get("seconds", 0.0)
            return StageForecast(stage=stage.stage, name=stage.name, state=state, saved_seconds=seconds)
    fit = recall(stage, execution.of_training())
    begun = last_whole_checkpoint(store.partial("checkpoint", stage.name) / TRAINER)
    there: dict[str, Any] = {"state": "damaged" if damaged else "new"}
    there_too = store.remote.steps_done("checkpoint", stage.name) if store.remote else None
    seal = max(filter(None, (begun and begun[1], there_too)), key=lambda each: each.step, default=None)
    if seal:
        there = {"state": "resumes", "step": seal.step, "total_steps": seal.total_steps, "saved_seconds": seal.seconds}
    fitted = fit and fit.per_device_train_batch_size
    return StageForecast(stage=stage.stage, name=stage.name, fitted_batch_size=fitted, **there)
