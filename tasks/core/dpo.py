"""Direct Preference Optimization: raise the chosen answer's log-probability over the rejected one's.

    loss = -log sigmoid(beta * ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r))))

Rafailov et al. 2023 (arXiv 2305.18290, equation 7). The reference is the model that training starts from: with LoRA the
policy with its adapter switched off, otherwise a second copy; either way the loss of the first step is ln 2.
"""

from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from models.stages import DPOInput
from tasks.core.loading import load_policy, load_tokenizer, load_trainable, training_dataset
from tasks.core.lora import lora_config, write_model
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.core.shared_prompts import share_prompts
from tasks.core.trainer import Report, Workspace, train, trainer_arguments


def dpo_arguments(stage: DPOInput, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """Arguments of TRL's `DPOConfig`."""
    asked = stage.hyperparameters
    terms = {asked.loss_type: 1.0} | ({"sft": asked.sft_weight} if asked.sft_weight else {})
    return trainer_arguments(stage, plan, folder) | {
        "beta": asked.beta,
        "loss_type": list(terms),
        "loss_weights": list(terms.values()),
        "label_smoothing": asked.label_smoothing,
        "max_length": asked.max_length,
    }


def train_dpo_model(stage: DPOInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, merge and write the model to the workspace `folder`."""
    workspace = Workspace(folder)
    set_seed(stage.seed)
    tokenizer = load_tokenizer(stage.policy.path)
    trainer = DPOTrainer(
        model=load_trainable(load_policy, stage, plan.device),
        args=DPOConfig(**dpo_arguments(stage, plan, workspace.trainer)),
        train_dataset=training_dataset(stage.dataset, ("prompt", "chosen", "rejected", "tools"), tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(stage.hyperparameters.lora, "CAUSAL_LM"),
    )
    if plan.share_prompts:
        share_prompts(trainer.model, trainer.ref_model)
    resumed = train(trainer, stage, plan, workspace, report)
    report({"phase": "merging"})
    metrics = write_model(trainer.model, tokenizer, stage, workspace, "CAUSAL_LM")
    return TrainingResult(metrics=metrics, resumed_from_step=resumed)
