"""What crosses the border to the training process: the plan, in which no weight is decided, and the result."""

from typing import Any, Literal

from models.artifacts import Precision, Stage
from models.contract import Contract
from models.launch import Sharding
from models.recipe import Quantization, Training

PROJECT = "align"
"""What trackers call the project or experiment, unless the user names another."""
BATCH_TOKENS = 8192
"""Prompt and reply tokens, with padding, that one batch of an evaluation may hold."""


class VLLM(Contract):
    """How vLLM generates completions; what it is asked for is the recipe's."""

    mode: Literal["colocate", "server"]
    """On the devices that train, or behind a URL."""
    server_url: str | None = None
    """The server's base URL."""
    gpu_memory_utilization: float = 0.3
    """Share of the device's memory that it takes, between 0 and 1."""
    tensor_parallel_size: int = 1
    """Devices that a copy of the model is spread over."""
    max_model_length: int | None = None
    """Longest sequence in tokens that it keeps room for; none: the model's context."""
    sleep: bool = False
    """Give its memory back while weights are updated."""


class TrainingPlan(Contract):
    """Machine-side counterpart of the hyperparameters."""

    device: Literal["cpu", "cuda", "mps"]
    """Device to train on."""
    per_device_train_batch_size: int
    """Rows that go through each process's model at once."""
    gradient_accumulation_steps: int
    """Micro-batches of each process per optimizer step."""
    processes: int = 1
    """Processes that train together; rows, accumulation and processes multiply to the batch."""
    sharding: Sharding = "ddp"
    """What they spread over themselves."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    share_prompts: bool = True
    """Compute once what rows of a micro-batch have in common at their beginnings."""
    checkpoint_every_steps: int = 25
    """Most optimizer steps between two trainer checkpoints."""
    checkpoint_every_minutes: float = 5.0
    """Most minutes between two trainer checkpoints, give or take a step."""
    checkpoints_kept: int = 2
    """Trainer checkpoints kept; the newest replaces the oldest."""
    report_to: tuple[str, ...] = ()
    """Trackers, by Transformers' names."""
    run: str = ""
    """Name of the run of the pipeline, for trackers."""
    vllm: VLLM | None = None
    """How vLLM generates GRPO's completions; none: Transformers does."""


class EvaluationPlan(Contract):
    """How a model is measured on a machine."""

    device: Literal["cpu", "cuda", "mps"]
    """Device to compute on."""
    batch_tokens: int = BATCH_TOKENS
    """Prompt and reply tokens, with padding, that one batch may hold."""
    share_prompts: bool = True
    """Compute once what rows of a batch have in common at their beginnings."""


class TrainingResult(Contract):
    """What a training process hands back; the model itself lies in the workspace's `model` folder."""

    metrics: dict[str, float]
    """Final figures of the stage."""
    resumed_from_step: int
    """Optimizer step that training went on from; 0: from the start."""


def split_batch(batch_size: int, largest: int | None) -> tuple[int, int]:
    """Split an effective batch into equal micro-batches.

    Args:
        batch_size: Rows per optimizer step.
        largest: Most rows that may go through the model at once; `None`: no limit.

    Returns:
        Micro-batch size and accumulation steps; their product is `batch_size`.
    """
    micro = next(size for size in range(min(batch_size, largest or batch_size), 0, -1) if batch_size % size == 0)
    return micro, batch_size // micro


class StageShape(Contract):
    """What decides how much memory a stage takes."""

    stage: Stage
    """The stage."""
    hyperparameters: Training
    """The recipe's section for it."""
    precision: Precision
    """Number format of weights and activations."""
    quantization: Quantization | None = None
    """How the frozen weights are held, where not in that precision."""
    plan: TrainingPlan
    """How it would be trained."""
    splits_generation: bool
    """Whether a want of memory can be caught, so that completions are then generated in parts; on a host without a
    limit the kernel ends the process instead."""
    longest_rows: tuple[dict[str, Any], ...]
    """The rows of its dataset with the longest texts, in normal form."""
    longest_tokens: int | None = None
    """Tokens of the longest row, where rows or tokenizer are not at hand to count them; none: count."""


class Footprint(Contract):
    """Estimate of the memory of a stage's process, in bytes; what is not in use at the peak counts as well."""

    stage: Stage
    """The stage."""
    longest_tokens: int
    """Tokens of the longest row that training sees, a completion's limit included."""
    weights: int
    """The model that is trained, adapters included."""
    gradients: int
    """Gradients of the weights that are trained."""
    optimizer: int
    """Both moments of AdamW."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    logits: int
    """What the loss and its gradient add to that."""
    reference: int
    """The reference model, where it is a copy of its own."""
    reward_model: int
    """The reward model that scores completions."""
    generation_cache: int
    """Keys and values of all completions of a step."""
    merging: int
    """What the merge and its check hold at once, always in the host's memory; part of `peak` on a host only."""
    process: int
    """The process itself with its libraries; 0 where only an accelerator's memory counts."""
    peak: int
    """The most that is in use at one time."""
    peak_of_one_row: int
    """The same with a micro-batch of one row."""
