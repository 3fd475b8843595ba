"""The pipeline: SFT, then a reward model beside DPO, then GRPO; every model judged on the same held-out rows.

                        ┌─> train_reward_model ─┐ (reward)
base model ─> train_sft ┤                       ├─> train_grpo ─> evaluate all ─> report
   datasets ─┘          └─> train_dpo ──────────┘ (policy)
"""

from collections.abc import Callable
from typing import Annotated, Any

from prefect.futures import PrefectFuture

from flows.parameters import checked_flow, titled
from models.artifacts import Checkpoint, Dataset, Stage, TrainingStage
from models.recipe import GRPO, Recipe
from models.rewards import Reward, Verifier
from models.run import RunRecord
from models.sources import DatasetSource
from models.stages import DPOInput, EvaluationInput, GRPOInput, RewardInput, SFTInput
from settings.settings import load_settings
from tasks.base_model import prepare_base_model
from tasks.compare import compare_models
from tasks.data.checking import cleaning_of
from tasks.data.formats.reading import Role
from tasks.dataset import prepare_dataset
from tasks.dpo import train_dpo
from tasks.evaluate import evaluate, held_out, judge_inputs
from tasks.execution import Execution, plan_execution
from tasks.gate import find_rivals
from tasks.grpo import train_grpo
from tasks.preflight import preflight
from tasks.recording import close_failed, open_run, refuse_impossible
from tasks.remote.opening import open_store
from tasks.report import report
from tasks.reward import train_reward_model
from tasks.reward_functions import function_digests
from tasks.scorer import prepare_scorer
from tasks.sft import train_sft
from tasks.showing import show_run


@checked_flow(name="align", on_failure=[close_failed], on_crashed=[close_failed], on_cancellation=[close_failed])
def align(
    recipe: Annotated[Recipe, titled("What to train")],
    recipe_name: Annotated[str, titled("Recipe's name")] = "recipe",
    force: Annotated[tuple[TrainingStage, ...], titled("Stages to train again")] = (),
    resume: Annotated[str | None, titled("Run to go on with")] = None,
) -> RunRecord:
    """Align a language model as the recipe says; what was trained before is taken, not trained again.

    Args:
        recipe: The recipe: base model, stages with their data, and what they are measured on.
        recipe_name: What the list of runs and the report call the recipe.
        force: Stages to train again although they are there; the old checkpoint is moved aside.
        resume: Name of an unfinished run of the same recipe, whose record goes on; empty: a new run.
    """
    settings = load_settings()
    refuse_impossible(recipe, settings.home, force, resume)
    needs = preflight(recipe, settings, keep=True).needs
    run = open_run(recipe, recipe_name, settings.home, force, resume, needs)
    execution = plan_execution(recipe, settings).of_run(run)

    def rows(
        source: DatasetSource, role: Role, rules: tuple[Reward | Verifier, ...] = (), stage: Stage | None = None
    ) -> PrefectFuture[Dataset]:
        asked = (source, role, recipe.system_prompt, execution, rules, cleaning_of(recipe, stage))
        return prepare_dataset.submit(*asked)

    base = prepare_base_model.submit(recipe.base_model, execution).result()
    demonstrations = rows(recipe.sft.dataset, "sft", stage="sft")
    heldout = held_out(recipe, rows)
    made = _train(recipe, base, demonstrations.result(), heldout, rows, execution)

    rivals = find_rivals(recipe, open_store(settings))
    inputs = judge_inputs(recipe, made, rivals.values(), heldout)
    evaluations = [evaluate.submit(each, execution.shared_by(len(inputs))) for each in inputs]
    judged = [evaluation.result() for evaluation in evaluations]
    own, others = judged[: len(made)], dict(zip(rivals, judged[len(made) :], strict=True))
    comparisons = compare_models.submit(own, others, recipe, execution).result()
    return show_run(report(run, list(made.values()), own, comparisons, execution))


def _train(
    recipe: Recipe,
    base: Checkpoint,
    demonstrations: Dataset,
    heldout: dict[str, Any],
    rows: Callable[..., PrefectFuture[Dataset]],
    execution: Execution,
) -> dict[Stage, Checkpoint]:
    """Train the recipe's stages, and judge the reward model before GRPO.

    Returns:
        All models, the base model's first.
    """
    common = execution.shared_inputs(recipe)
    sft_input = SFTInput(policy=base, dataset=demonstrations, hyperparameters=recipe.sft, **common)
    training = train_sft.submit(sft_input, execution)
    data = _later_data(recipe, rows)  # prepared while it trains
    sft = training.result()

    reward = dpo = grpo = accuracy = None
    side_by_side = execution.shared_by(2 if recipe.reward and recipe.dpo else 1)
    if recipe.reward:
        reward_input = RewardInput(policy=sft, dataset=data["reward"].result(), hyperparameters=recipe.reward, **common)
        reward = train_reward_model.submit(reward_input, side_by_side)
    if recipe.dpo:
        dpo_input = DPOInput(policy=sft, dataset=data["dpo"].result(), hyperparameters=recipe.dpo, **common)
        dpo = train_dpo.submit(dpo_input, side_by_side)
    if reward:
        ranking = evaluate.submit(EvaluationInput(checkpoint=reward.result(), **heldout), side_by_side)
        accuracy = ranking.result().preference_accuracy
    if recipe.grpo:
        grpo_input = GRPOInput(
            policy=dpo.result() if dpo else sft,
            reward_model=reward.result() if reward else None,
            reward_accuracy=accuracy,
            dataset=data["grpo"].result(),
            hyperparameters=recipe.grpo,
            functions=function_digests(recipe.grpo),
            generator=execution.generator,
            **_other_scorers(recipe.grpo, heldout, execution),
            **common,
        )
        grpo = train_grpo.submit(grpo_input, execution)
    return {made.stage: made for made in (base, sft, *(each.result() for each in (reward, dpo, grpo) if each))}


def _later_data(
    recipe: Recipe, rows: Callable[..., PrefectFuture[Dataset]]
) -> dict[TrainingStage, PrefectFuture[Dataset]]:
    """What the stages after SFT train on, being prepared."""
    data: dict[TrainingStage, PrefectFuture[Dataset]] = {}
    if recipe.reward:
        data["reward"] = rows(recipe.reward.dataset, "preference", stage="reward")
    if recipe.dpo:
        data["dpo"] = rows(recipe.dpo.dataset, "preference", stage="dpo")
    if recipe.grpo:
        data["grpo"] = rows(recipe.grpo.dataset, "prompts", recipe.grpo.rewards, "grpo")
    return data


def _other_scorers(asked: GRPO, heldout: dict[str, Any], execution: Execution) -> dict[str, Any]:
    """The reward models from elsewhere that GRPO's rewards name, each judged on held-out pairs, if there are any."""
    named = asked.other_reward_models
    scorers = {each.label: prepare_scorer.submit(each, execution).result() for each in named}
    rankings = {
        label: evaluate.submit(EvaluationInput(checkpoint=scorer, **heldout), execution)
        for label, scorer in scorers.items()
        if heldout["preferences"]
    }
    accuracies = {label: each.result().preference_accuracy for label, each in rankings.items()}
    return {"scorers": scorers, "scorer_accuracies": accuracies}
