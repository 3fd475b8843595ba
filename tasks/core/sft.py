"""Supervised fine-tuning: cross-entropy on the tokens of the completion, given the prompt.

Ouyang et al. 2022 (arXiv 2203.02155, section 3.4) for its place in the pipeline. The prompt's tokens carry no loss.
"""

from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from models.stages import SFTInput
from tasks.core.loading import load_policy, load_tokenizer, load_trainable, training_dataset
from tasks.core.lora import lora_config, write_model
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.core.shared_prompts import share_prompts
from tasks.core.trainer import Report, Workspace, train, trainer_arguments


def sft_arguments(stage: SFTInput, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """Arguments of TRL's `SFTConfig`."""
    asked = stage.hyperparameters
    return trainer_arguments(stage, plan, folder) | {
        "max_length": asked.max_length,
        "packing": asked.packing,
        "completion_only_loss": True,
    }


def train_sft_model(stage: SFTInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, merge and write the model to the workspace `folder`."""
    workspace = Workspace(folder)
    set_seed(stage.seed)
    tokenizer = load_tokenizer(stage.policy.path)
    trainer = SFTTrainer(
        model=load_trainable(load_policy, stage, plan.device),
        args=SFTConfig(**sft_arguments(stage, plan, workspace.trainer)),
        train_dataset=training_dataset(stage.dataset, ("prompt", "completion", "tools"), tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(stage.hyperparameters.lora, "CAUSAL_LM"),
    )
    if plan.share_prompts:
        share_prompts(trainer.model)
    resumed = train(trainer, stage, plan, workspace, report)
    report({"phase": "merging"})
    metrics = write_model(trainer.model, tokenizer, stage, workspace, "CAUSAL_LM")
    return TrainingResult(metrics=metrics, resumed_from_step=resumed)
