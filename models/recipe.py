"""The recipe: everything that changes what is trained, and nothing that depends on the machine.

The same model gives the YAML file's schema, the command line's flags and the form in the Prefect UI. Defaults follow
TRL where nothing else is said; LoRA's are the usual ones for small instruct models (rank 8, alpha 16, attention only).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.alarms import Alarms
from models.artifacts import Stage
from models.contract import ADVANCED, Contract
from models.data_rules import DataRules
from models.gate import Gate
from models.measurement import Evaluation
from models.rewards import Reward
from models.sources import BaseModelSource, DatasetSource, Positive

Fraction = Annotated[float, Field(ge=0, le=1)]


class LoRA(Contract):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) that are trained in place of the full weights."""

    r: Positive = Field(8, title="Rank")
    """Rank of the update matrices, their inner dimension."""
    alpha: Positive = Field(16, title="Alpha")
    """The update is scaled by the factor alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout")
    """Probability, from 0 to 1, of dropping an input of the adapter while training."""
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1, title="Target modules"
    )
    """Names of the linear layers that get an adapter."""


class Quantization(Contract):
    """Frozen weights in 4 bits under the adapters that train (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

    quant_type: Literal["nf4", "fp4"] = Field("nf4", title="Number format")
    """`nf4`: the paper's NormalFloat, whose 16 values suit weights that are normally distributed; `fp4`: a float."""
    double_quant: bool = Field(True, title="Double quantisation", json_schema_extra=ADVANCED)
    """Quantise the scales of the blocks as well, which saves about 0.4 bits a weight."""


class Training(Contract):
    """What all four trainers have in common."""

    dataset: DatasetSource = Field(title="Training data")
    """The rows that this stage trains on."""
    learning_rate: float = Field(1e-4, gt=0, le=1, title="Learning rate")
    """Peak learning rate of AdamW: the factor of each update once the warm-up is over."""
    num_train_epochs: float = Field(1.0, gt=0, title="Epochs")
    """Passes over the data; ignored where a number of steps is given."""
    max_steps: Positive | None = Field(None, title="Optimizer steps")
    """Optimizer steps; default: as many as the epochs need."""
    batch_size: Positive = Field(16, title="Effective batch size in rows")
    """Rows per optimizer step over all devices and accumulation; how it is split is the machine's affair."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", title="Schedule", json_schema_extra=ADVANCED
    )
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Fraction = Field(0.0, title="Warm-up", json_schema_extra=ADVANCED)
    """Share of the steps, from 0 to 1, in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0, title="Weight decay", json_schema_extra=ADVANCED)
    """AdamW's decoupled weight decay, a factor of each weight."""
    adam_beta1: float = Field(0.9, ge=0, lt=1, title="Adam beta 1", json_schema_extra=ADVANCED)
    """Factor by which the running mean of the gradient decays with each step."""
    adam_beta2: float = Field(0.999, ge=0, lt=1, title="Adam beta 2", json_schema_extra=ADVANCED)
    """Factor by which the running mean of the squared gradient decays with each step."""
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient clipping", json_schema_extra=ADVANCED)
    """Largest norm of the gradient, which is scaled down to it where it is larger."""
    lora: LoRA | None = Field(LoRA(), title="LoRA")
    """Adapters to train; none: full fine-tuning of every weight."""


class SFT(Training):
    """Supervised fine-tuning on demonstrations; the loss is taken on the completion's tokens only."""

    max_length: Positive = Field(1024, title="Longest row in tokens")
    """Rows are cut to so many tokens, prompt and completion together."""
    packing: bool = Field(False, title="Packing", json_schema_extra=ADVANCED)
    """Fill each row with several examples."""


class RewardModel(Training):
    """Bradley-Terry reward model (Christiano et al. 2017, arXiv 1706.03741) with a scalar head on the SFT model."""

    max_length: Positive = Field(1024, title="Longest row in tokens")
    """Pairs with a longer side are dropped by the trainer."""
    center_rewards_coefficient: float | None = Field(None, ge=0, title="Centering", json_schema_extra=ADVANCED)
    """Weight of the squared sum of a pair's rewards, which keeps rewards near zero (Eisenstein et al. 2023)."""


class DPO(Training):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290); the SFT model is the reference."""

    beta: float = Field(0.1, gt=0, title="Beta")
    """Strength of the pull towards the reference, a factor of the log-probability ratios."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = Field("sigmoid", title="Loss")
    """Form of the preference loss; `sigmoid` is the paper's."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, title="Label smoothing", json_schema_extra=ADVANCED)
    """Assumed share of preferences noted the wrong way round, from 0 to one half; for loss `robust` only."""
    sft_weight: float = Field(0.0, ge=0, title="SFT weight", json_schema_extra=ADVANCED)
    """Weight of the chosen answer's cross-entropy, which keeps its probability from falling (Pang et al. 2024,
    arXiv 2404.19733)."""
    max_length: Positive = Field(1024, title="Longest row in tokens")
    """Rows are cut to so many tokens."""

    @model_validator(mode="after")
    def _robust_and_smoothing_go_together(self) -> "DPO":
        if self.loss_type == "robust" and self.label_smoothing == 0:
            raise ValueError("loss_type 'robust' with label_smoothing 0 is the plain loss; set label_smoothing above 0")
        if self.loss_type != "robust" and self.label_smoothing:
            raise ValueError(f"label_smoothing has no effect on loss_type '{self.loss_type}'; use loss_type robust")
        return self


class GRPO(Training):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

    batch_size: Positive = Field(64, title="Effective batch size in completions")
    """Completions per optimizer step over all devices and accumulation; a multiple of `num_generations`."""
    learning_rate: float = Field(1e-5, gt=0, le=1, title="Learning rate")
    """Peak learning rate of AdamW: the factor of each update once the warm-up is over."""
    rewards: tuple[Reward, ...] = Field((Reward(kind="exact_answer"),), min_length=1, title="Rewards")
    """The weighted list of rewards whose sum a completion gets."""
    num_generations: int = Field(8, ge=2, title="Completions per prompt")
    """Size of the group that advantages are computed in: so many completions answer one prompt."""
    max_completion_length: Positive = Field(256, title="Longest completion in tokens")
    """Sampling stops after so many tokens."""
    temperature: float = Field(1.0, gt=0, title="Temperature")
    """Factor that the logits are divided by in sampling; 1: as the model says."""
    top_p: float = Field(1.0, gt=0, le=1, title="Nucleus", json_schema_extra=ADVANCED)
    """Sample from the most likely tokens that together have this probability, from 0 to 1."""
    beta: float = Field(0.0, ge=0, title="Beta")
    """Weight of the KL divergence from the parent; 0: no reference model."""
    num_iterations: Positive = Field(1, title="Iterations", json_schema_extra=ADVANCED)
    """Optimizer passes over each generated batch."""
    epsilon: float = Field(0.2, gt=0, lt=1, title="Epsilon", json_schema_extra=ADVANCED)
    """Share by which the probability ratio may differ from 1 before it is clipped."""
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = Field("dapo", title="Loss", json_schema_extra=ADVANCED)
    """How the loss is averaged over tokens."""
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", title="Reward scaling", json_schema_extra=ADVANCED
    )
    """What the advantages are divided by: the standard deviation of the group, of the batch, or nothing."""

    @property
    def wants_own_reward_model(self) -> bool:
        """Whether a reward is the run's own reward model."""
        return any(reward.kind == "reward_model" and not reward.model for reward in self.rewards)

    @property
    def other_reward_models(self) -> tuple[Reward, ...]:
        """The rewards by a reward model that this run does not train."""
        return tuple(reward for reward in self.rewards if reward.model)

    @model_validator(mode="after")
    def _groups_fill_batch(self) -> "GRPO":
        if self.batch_size % self.num_generations:
            below = max(1, self.batch_size // self.num_generations) * self.num_generations
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by num_generations {self.num_generations}; "
                f"use batch_size={below} or {below + self.num_generations}, or a num_generations that divides it"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_distinct(self) -> "GRPO":
        labels = [reward.label for reward in self.rewards]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two of the rewards {labels} have one name; give each a `name`, or one the summed weight")
        if not any(reward.weight for reward in self.rewards):
            raise ValueError("every reward has weight 0, so nothing can be learned; give one a weight above 0")
        return self


class Recipe(Contract):
    """One alignment run: a base model, up to four stages, and what they are judged on."""

    base_model: BaseModelSource = Field(BaseModelSource(), title="Base model")
    """The model that supervised fine-tuning starts from."""
    system_prompt: str | None = Field(None, title="System prompt")
    """Put before every conversation that has none, also in evaluation and chat; default: the chat template's own."""
    sft: SFT = Field(title="Supervised fine-tuning")
    """The first stage, which every other one starts from."""
    reward: RewardModel | None = Field(None, title="Reward model")
    """A scorer trained on pairs, starting from the SFT model."""
    dpo: DPO | None = Field(None, title="Direct Preference Optimization")
    """Preference training of the SFT model."""
    grpo: GRPO | None = Field(None, title="Group Relative Policy Optimization")
    """Reinforcement learning of the last policy there is."""
    evaluation: Evaluation = Field(title="Held-out evaluation")
    """What the base model and every stage are measured on: rows that none of them trains on."""
    gate: Gate | None = Field(None, title="Gate")
    """What the last policy must show before it may be promoted; none: nothing."""
    data_rules: DataRules = Field(DataRules(), title="Data rules")
    """What becomes of rows that are empty, damaged, doubled, too long or otherwise unfit."""
    alarms: Alarms = Field(Alarms(), title="Training alarms")
    """When to warn while a stage trains, and when to stop it."""
    seed: int = Field(0, ge=0, lt=2**32, title="Seed")
    """Seed of initialisation, data order and sampling: any whole number."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", title="Precision")
    """Number format of weights and activations; `auto`: bf16 where the machine computes it natively, else fp32 (CPU) or
    fp16 (GPU)."""
    quantization: Quantization | None = Field(None, title="4-bit weights")
    """Hold the frozen weights of every stage in 4 bits while its adapters train; none: in the precision above. What a
    stage publishes is never quantised."""

    def parent_of(self, stage: Stage) -> Stage:
        """The stage whose policy a stage starts from."""
        if stage == "grpo" and self.dpo:
            return "dpo"
        return "base" if stage == "sft" else "sft"

    @model_validator(mode="after")
    def _reward_model_is_checked_and_used(self) -> "Recipe":
        wants_reward_model = self.grpo and self.grpo.wants_own_reward_model
        if wants_reward_model and not self.reward:
            raise ValueError("grpo.rewards asks for a reward_model, but the recipe has no reward stage; add `reward:`")
        if self.reward and not self.evaluation.preferences:
            raise ValueError("a reward model is checked on held-out pairs; name them in evaluation.preferences")
        return self

    @model_validator(mode="after")
    def _quantised_weights_need_adapters(self) -> "Recipe":
        stages = {"sft": self.sft, "reward": self.reward, "dpo": self.dpo, "grpo": self.grpo}
        full = [name for name, stage in stages.items() if stage and not stage.lora]
        if self.quantization and full:
            raise ValueError(
                f"quantization is set, but {', '.join(full)} has no lora: 4-bit weights cannot be trained themselves; "
                f"set {full[0]}.lora, or remove quantization"
            )
        return self
