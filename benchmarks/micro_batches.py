"""Forward and backward pass of a micro-batch in TRL's way and with common beginnings computed once, in turn.

The model has SmolLM2-135M's shape with random weights and a LoRA adapter. DPO's time includes the reference's forward
pass. Times are those of the processor, with one thread, which other work on the machine disturbs least.
"""

import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from models.recipe import LoRA
from tasks.core.lora import lora_config
from tasks.core.prefix_tree import pack
from tasks.core.shared_prompts import share_prompts

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "num_labels": 1,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Rows = dict[str, torch.Tensor]
Step = Callable[[Any, Rows], torch.Tensor]
"""A stage's forward pass, of a model and a micro-batch."""


class Case(NamedTuple):
    """A micro-batch: prompts of these lengths in tokens, and completions of each."""

    name: str
    """What the table calls it."""
    stage: str
    """Whose forward pass: `sft`, `reward`, `dpo`, `grpo`."""
    prompts: tuple[int, int]
    """Fewest and most tokens of a prompt, without what all have in common."""
    completions: tuple[int, int]
    """Fewest and most tokens of a completion."""
    groups: tuple[int, ...]
    """How many completions each prompt has."""
    common: int = 0
    """Tokens of the system prompt that all rows begin with."""


class Measured(NamedTuple):
    """What a micro-batch took on both sides."""

    shape: tuple[int, int]
    """Rows and tokens of a row, with padding."""
    needed: int
    """Tokens with a past of their own."""
    computed: dict[str, int]
    """Tokens that went through the model, by side."""
    seconds: dict[str, list[float]]
    """Processor time of each round, by side."""
    gflop: dict[str, float]
    """Thousand million operations of matrix products, attention left out, by side, where they were counted."""
    off: float
    """Largest difference of a log-probability or score."""
    gradients_off: float
    """Norm of the difference of all gradients, relative to TRL's."""

    @property
    def faster(self) -> float:
        """How many times faster ours is, by medians."""
        return median(self.seconds["theirs"]) / median(self.seconds["ours"])

    def rate(self, side: str) -> float:
        """Matrix products in GFLOP/s."""
        return self.gflop[side] / median(self.seconds[side])


def measure(case: Case, dtype: torch.dtype, rounds: int, *, counting: bool = False) -> Measured:
    """Run a micro-batch on both sides, who goes first changing from round to round.

    Args:
        case: The micro-batch.
        dtype: Number format of the weights.
        rounds: How often each side is timed.
        counting: Whether operations are counted, in a pass of its own that is not timed.
    """
    rows = micro_batch(case)
    models = {"theirs": build(case.stage, dtype), "ours": build(case.stage, dtype)}
    share_prompts(models["ours"])
    step = STEPS[case.stage]
    for model in models.values():  # the first batch is computed in both ways
        step(model, {name: tensor[:2, :64] for name, tensor in rows.items()})
    seconds: dict[str, list[float]] = {side: [] for side in models}
    gflop = {side: _gflop(step, model, rows) for side, model in models.items()} if counting else {}
    figures = {}
    for index in range(rounds):
        for side in models if index % 2 else reversed(models):
            models[side].zero_grad()
            started = time.process_time()
            found = step(models[side], rows)
            found.sum().backward()  # type: ignore[no-untyped-call]
            seconds[side].append(time.process_time() - started)
            figures[side] = found.detach()
    packing = pack(rows["input_ids"], rows["attention_mask"], SMOLLM2["hidden_size"])
    size = rows["input_ids"].numel()
    return Measured(
        shape=(len(rows["input_ids"]), rows["input_ids"].shape[1]),
        needed=_distinct(rows),
        computed={"theirs": size, "ours": packing.input_ids.numel() if packing else size},
        seconds=seconds,
        off=float((figures["ours"] - figures["theirs"]).abs().max()),
        gradients_off=difference(models["ours"], models["theirs"]),
        gflop=gflop,
    )


def _gflop(step: Step, model: Any, rows: Rows) -> float:
    with FlopCounterMode(display=False) as counter:
        step(model, rows).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / 1e9


def matrix_product_rate(dtype: torch.dtype, rows: int = 1024) -> float:
    """GFLOP/s of this machine's matrix product at the size of a layer's widest one, the best of several."""
    width, inner = SMOLLM2["hidden_size"], SMOLLM2["intermediate_size"]
    one, other = torch.randn(rows, width, dtype=dtype), torch.randn(width, inner, dtype=dtype)
    seconds = []
    for _ in range(100):
        started = time.process_time()
        one @ other
        seconds.append(time.process_time() - started)
    return 2 * rows * width * inner / min(seconds) / 1e9


def _distinct(rows: Rows) -> int:
    """Tokens of all rows that differ in themselves or in what comes before."""
    pairs = zip(rows["input_ids"], rows["attention_mask"].bool(), strict=True)
    told = [tuple(row[mask].tolist()) for row, mask in pairs]
    return len({row[:end] for row in told for end in range(1, len(row) + 1)})


def build(stage: str, dtype: torch.dtype) -> PeftModel:
    """The model with its adapter, in which no weight is zero."""
    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2)
    if stage == "reward":
        model, task = LlamaForSequenceClassification(config), "SEQ_CLS"
    else:
        model, task = LlamaForCausalLM(config), "CAUSAL_LM"
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    adapted = get_peft_model(model.to(dtype), lora_config(LoRA(dropout=0.0), task))  # type: ignore[arg-type]
    for parameter in trained(adapted):
        parameter.data = parameter.data.float() + 0.01
    return adapted.to(dtype).train()


def trained(model: Any) -> Iterator[Any]:
    """The weights that are trained."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def difference(ours: Any, theirs: Any) -> float:
    """Norm of the difference of all gradients, relative to theirs."""
    ours, theirs = (torch.cat([each.grad.float().flatten() for each in trained(model)]) for model in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def micro_batch(case: Case) -> Rows:
    """Random rows, padded as the stage pads them."""
    draw = random.Random(1)  # noqa: S311

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(1, 49152) for _ in range(draw.randint(least, most))]

    system, rows = tokens(case.common, case.common), []
    for group in case.groups:
        prompt = system + tokens(*case.prompts)
        rows += [(prompt, tokens(*case.completions)) for _ in range(group)]
    draw.shuffle(rows)
    most = max(len(prompt) for prompt, _ in rows) if case.stage == "grpo" else 0
    padded = [[0] * max(0, most - len(prompt)) + prompt + completion for prompt, completion in rows]
    width = max(map(len, padded))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in padded])
    mask = (input_ids != 0).long()
    if case.stage == "reward":
        return {"input_ids": input_ids, "attention_mask": mask}
    column = torch.arange(width)
    ends = torch.tensor([most or len(prompt) for prompt, _ in rows]).unsqueeze(1)
    labels = input_ids.masked_fill((mask == 0) | (column < ends), -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def log_probabilities(model: Any, rows: Rows) -> torch.Tensor:
    """As GRPO and SFT ask for them."""
    figures: torch.Tensor = model(**rows, use_cache=False, fused_lm_head=True).log_probs
    return figures


def log_ratios(model: Any, rows: Rows) -> torch.Tensor:
    """As DPO asks for them: of policy and reference."""
    with torch.no_grad(), model.disable_adapter():
        reference = log_probabilities(model, rows)
    return log_probabilities(model, rows) - reference


def scores(model: Any, rows: Rows) -> torch.Tensor:
    """As reward modelling asks for them."""
    figures: torch.Tensor = model(**rows, use_cache=False).logits
    return figures


STEPS: dict[str, Step] = {
    "sft": log_probabilities,
    "grpo": log_probabilities,
    "dpo": log_ratios,
    "reward": scores,
}
