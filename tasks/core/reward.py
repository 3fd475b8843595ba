"""Reward modelling: a scalar score whose difference predicts which of two answers is preferred.

    loss = -log sigmoid(score(prompt, chosen) - score(prompt, rejected))

Bradley-Terry, as in Ouyang et al. 2022 (arXiv 2203.02155, equation 1). The score head is trained and published with the
model.
"""

from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from models.stages import RewardInput
from tasks.core.loading import load_scorer, load_tokenizer, load_trainable, training_dataset
from tasks.core.lora import lora_config, write_model
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.core.shared_prompts import share_prompts
from tasks.core.trainer import Report, Workspace, train, trainer_arguments


def reward_arguments(stage: RewardInput, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """Arguments of TRL's `RewardConfig`."""
    asked = stage.hyperparameters
    return trainer_arguments(stage, plan, folder) | {
        "max_length": asked.max_length,
        "center_rewards_coefficient": asked.center_rewards_coefficient,
    }


def train_scorer(stage: RewardInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, merge and write the model to the workspace `folder`."""
    workspace = Workspace(folder)
    set_seed(stage.seed)
    tokenizer = load_tokenizer(stage.policy.path)
    model = load_trainable(load_scorer, stage, plan.device)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**reward_arguments(stage, plan, workspace.trainer)),
        train_dataset=training_dataset(stage.dataset, ("prompt", "chosen", "rejected", "tools"), tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(stage.hyperparameters.lora, "SEQ_CLS"),
    )
    if plan.share_prompts:
        share_prompts(trainer.model)
    resumed = train(trainer, stage, plan, workspace, report)
    report({"phase": "merging"})
    metrics = write_model(trainer.model, tokenizer, stage, workspace, "SEQ_CLS")
    return TrainingResult(metrics=metrics, resumed_from_step=resumed)
