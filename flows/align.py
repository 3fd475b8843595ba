"""The pipeline: SFT, then a reward model beside DPO, then GRPO; every model judged on the same held-out rows.

                        ┌─> train_reward_model ─┐ (reward)
base model ─> train_sft ┤                       ├─> train_grpo ─> evaluate all ─> report
   datasets ─┘          └─> train_dpo ──────────┘ (policy)
"""

from prefect import flow

from models.artifacts import Dataset
from models.recipe import DatasetSource, Recipe
from models.run import RunRecord
from models.stages import DPOInput, EvaluationInput, GRPOInput, RewardInput, SFTInput
from settings.settings import load_settings
from tasks.base_model import prepare_base_model
from tasks.dataset import prepare_dataset
from tasks.dpo import train_dpo
from tasks.evaluate import evaluate
from tasks.execution import plan_execution
from tasks.grpo import train_grpo
from tasks.preflight import preflight
from tasks.report import report
from tasks.reward import train_reward_model
from tasks.rows import Role
from tasks.run_record import close_failed, open_run
from tasks.sft import train_sft


@flow(name="align", on_failure=[close_failed], on_crashed=[close_failed], on_cancellation=[close_failed])
def align(recipe: Recipe, recipe_name: str = "recipe") -> RunRecord:
    """Align a language model as the recipe says; what was trained before is taken, not trained again."""
    settings = load_settings()
    preflight(recipe, settings)
    execution = plan_execution(recipe, settings)
    run = open_run(recipe, recipe_name, settings.home)

    def rows(source: DatasetSource, role: Role) -> Dataset:
        return prepare_dataset.submit(source, role, recipe.system_prompt, execution).result()

    common = execution.shared_inputs(recipe)
    prompts = rows(recipe.evaluation.prompts, "prompts")
    pairs = rows(recipe.evaluation.preferences, "preference") if recipe.evaluation.preferences else None

    base = prepare_base_model.submit(recipe.base_model, execution).result()
    sft_input = SFTInput(policy=base, dataset=rows(recipe.sft.dataset, "sft"), hyperparameters=recipe.sft, **common)
    sft = train_sft.submit(sft_input, execution).result()

    side_by_side = execution.shared_by(2 if recipe.reward and recipe.dpo else 1)
    reward = dpo = grpo = None
    if recipe.reward and pairs:
        pairs_to_rank = rows(recipe.reward.dataset, "preference")
        reward_input = RewardInput(
            policy=sft, dataset=pairs_to_rank, hyperparameters=recipe.reward, heldout=pairs, **common
        )
        reward = train_reward_model.submit(reward_input, side_by_side)
    if recipe.dpo:
        dpo_input = DPOInput(
            policy=sft, dataset=rows(recipe.dpo.dataset, "preference"), hyperparameters=recipe.dpo, **common
        )
        dpo = train_dpo.submit(dpo_input, side_by_side)
    reward_model = reward.result() if reward else None
    policy = dpo.result() if dpo else sft
    if recipe.grpo:
        grpo_input = GRPOInput(
            policy=policy,
            reward_model=reward_model,
            dataset=rows(recipe.grpo.dataset, "prompts"),
            hyperparameters=recipe.grpo,
            **common,
        )
        grpo = train_grpo.submit(grpo_input, execution)

    made = [base, sft, reward_model, dpo and dpo.result(), grpo and grpo.result()]
    checkpoints = [checkpoint for checkpoint in made if checkpoint]
    figures = [
        evaluate.submit(
            EvaluationInput(
                checkpoint=checkpoint, spec=recipe.evaluation, prompts=prompts, preferences=pairs, seed=recipe.seed
            ),
            execution.shared_by(len(checkpoints)),
        )
        for checkpoint in checkpoints
    ]
    return report(run, checkpoints, [figure.result() for figure in figures], execution)
