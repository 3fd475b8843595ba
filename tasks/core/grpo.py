"""Group Relative Policy Optimization: sample a group of answers per prompt, reward each, and reinforce the better ones.

    advantage = (reward - mean of the group) / standard deviation of the group

Shao et al. 2024 (arXiv 2402.03300, section 4.1). The reward is a weighted sum of reward models, which read the
conversation with their own tokenizers and templates and are never trained here, of verifiable rewards, and of functions
of the user's.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from models.errors import StageError
from models.rewards import Reward
from models.stages import GRPOInput
from tasks.core.columns import unpacked
from tasks.core.decoding import complete, merged_adapters
from tasks.core.loading import DTYPES, load_policy, load_scorer, load_tokenizer, load_trainable, training_dataset
from tasks.core.lora import lora_config, write_model
from tasks.core.memory import in_parts
from tasks.core.plan import VLLM, TrainingPlan, TrainingResult
from tasks.core.reward_shares import reward_shares
from tasks.core.shared_prompts import share_prompts
from tasks.core.trainer import Report, Workspace, train, trainer_arguments
from tasks.core.trl_rewards import trl_reward
from tasks.core.user_reward import UserReward, accounting_for, user_reward
from tasks.core.verifiers import RewardFunction, verifiable_reward

RewardTerm = RewardFunction | UserReward | nn.Module


def grpo_arguments(stage: GRPOInput, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """Arguments of TRL's `GRPOConfig`; one generation of `batch_size` completions feeds each optimizer step."""
    asked = stage.hyperparameters
    return trainer_arguments(stage, plan, folder) | {
        "generation_batch_size": asked.batch_size,
        "num_generations": asked.num_generations,
        "max_completion_length": asked.max_completion_length,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "beta": asked.beta,
        "num_iterations": asked.num_iterations,
        "epsilon": asked.epsilon,
        "loss_type": asked.loss_type,
        "scale_rewards": asked.scale_rewards,
        "reward_weights": [reward.weight for reward in asked.rewards],
        **(_vllm_arguments(plan.vllm) if plan.vllm else {}),
    }


def _vllm_arguments(vllm: VLLM) -> dict[str, Any]:
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_server_base_url": vllm.server_url,
        "vllm_gpu_memory_utilization": vllm.gpu_memory_utilization,
        "vllm_tensor_parallel_size": vllm.tensor_parallel_size,
        "vllm_max_model_length": vllm.max_model_length,
        "vllm_enable_sleep_mode": vllm.sleep,
    }


class _EpochSampler(Sampler[int]):
    """TRL's order of prompts, drawn anew for each epoch from seed and epoch.

    TRL draws all epochs from one generator, which a resumed training would start again at its first epoch.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        self._sampler.generator.manual_seed(self._sampler.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


class _Scorer(nn.Module):
    """A reward model that scores in parts where memory runs out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Scores as `logits` of (batch, 1)."""

        def scores(rows: Sequence[int]) -> list[torch.Tensor]:
            chosen = {name: tensor[list(rows)] for name, tensor in inputs.items()}
            return list(self.model(**chosen, use_cache=False).logits)

        return SequenceClassifierOutput(logits=torch.stack(in_parts(scores, range(len(inputs["input_ids"])))))


class _Trainer(GRPOTrainer):
    """TRL's trainer with an order of data that a resumed training continues, and generation that fits into memory.

    Reward functions get every column of the data by its name.
    """

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return _EpochSampler(super()._get_train_sampler(dataset))

    def _calculate_rewards(self, inputs: Sequence[dict[str, Any]], *arguments: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards([unpacked(row) for row in inputs], *arguments)
        shares = reward_shares(rewards, self.reward_weights, self.num_generations)
        for name, share in zip(self.reward_func_names, shares, strict=True):
            self._metrics["train"][f"rewards/{name}/share"].append(share)
        return rewards

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> tuple[list[list[int]], Any]:
        # vLLM has memory of its own and log-probabilities for the loss; processes with a shard each go in step.
        if self.use_vllm or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            drawn: tuple[list[list[int]], Any] = super()._generate_single_turn(prompt_ids, *arguments, **options)
            return drawn
        # Completions are drawn independently: their distribution is the same in parts.
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as policy, merged_adapters(policy):
            return in_parts(partial(self._complete, policy), prompt_ids), None

    def _complete(self, policy: Any, prompt_ids: Sequence[list[int]]) -> list[list[int]]:
        padding, config = self.generation_config.pad_token_id, self.generation_config
        return complete(policy, prompt_ids, self.eos_token_ids, padding, generation_config=config)


def train_grpo_policy(stage: GRPOInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, merge and write the model to the workspace `folder`.

    Raises:
        StageError: the rewards ask for a reward model that is missing or ranks held-out pairs no better than chance.
    """
    workspace = Workspace(folder)
    set_seed(stage.seed)
    tokenizer = load_tokenizer(stage.policy.path)
    functions, tokenizers = _rewards(stage, plan)
    trainer = _Trainer(
        model=load_trainable(load_policy, stage, plan.device),
        reward_funcs=functions,
        reward_processing_classes=tokenizers,
        args=GRPOConfig(**grpo_arguments(stage, plan, workspace.trainer)),
        train_dataset=training_dataset(stage.dataset, ("prompt", "answer", "kind", "extra"), tokenizer),
        processing_class=tokenizer,
        peft_config=lora_config(stage.hyperparameters.lora, "CAUSAL_LM"),
    )
    if plan.share_prompts:
        share_prompts(trainer.model, trainer.ref_model)
    trainer.reward_func_names = [reward.label for reward in stage.hyperparameters.rewards]
    with accounting_for(functions, workspace.model) as failures:
        resumed = train(trainer, stage, plan, workspace, report)
    report({"phase": "merging"})
    metrics = write_model(trainer.model, tokenizer, stage, workspace, "CAUSAL_LM")
    return TrainingResult(metrics=metrics | failures, resumed_from_step=resumed)


def _rewards(stage: GRPOInput, plan: TrainingPlan) -> tuple[list[RewardTerm], list[PreTrainedTokenizerBase | None]]:
    """The reward functions in the recipe's order, and the tokenizer of each that is a model."""
    functions: list[RewardTerm] = []
    tokenizers: list[PreTrainedTokenizerBase | None] = []
    for reward in stage.hyperparameters.rewards:
        if reward.kind == "reward_model":
            path = _checked_reward_model(stage, reward)
            scorer = load_scorer(path, DTYPES[stage.precision], plan.device).requires_grad_(False).eval()
            if plan.share_prompts:
                share_prompts(scorer)
            functions.append(_Scorer(scorer))
            tokenizers.append(load_tokenizer(path))
        elif reward.kind == "function":
            functions.append(user_reward(reward, stage.functions.get(reward.label)))
            tokenizers.append(None)
        else:
            functions.append(trl_reward(reward) if reward.kind == "trl" else verifiable_reward(reward))
            tokenizers.append(None)
    return functions, tokenizers


def _checked_reward_model(stage: GRPOInput, reward: Reward) -> Path:
    """The reward model's folder, unless it ranks held-out pairs no better than chance.

    Without such pairs nobody can say that of a model from elsewhere; one of this run has always been judged.
    """
    label = reward.label
    own = (stage.reward_model, stage.reward_accuracy)
    model, accuracy = (stage.scorers.get(label), stage.scorer_accuracies.get(label)) if reward.model else own
    if model is None or (accuracy is None and not reward.model):
        raise StageError("grpo.rewards asks for a reward_model, but none was trained and judged; add a reward stage")
    if accuracy and accuracy.low <= 0.5:
        raise StageError(
            f"reward model {model.name} ranks held-out pairs no better than chance (accuracy {accuracy}); train it "
            "longer or on clearer pairs, or remove reward_model from grpo.rewards"
        )
    return model.path
