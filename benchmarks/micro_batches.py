"""Prompts computed once against TRL's way, in turn: forward and backward pass of a micro-batch.

    python -m benchmarks.shared_prompt [--precision bf16] [--rounds 3] [--only GRPO]

The model has SmolLM2-135M's shape with random weights and a LoRA adapter. DPO's time includes the reference's forward
pass. Times are those of the processor, with one thread, which other work on the machine disturbs least. Prints a table
in Markdown: medians, the fastest and slowest round, and how far log-probabilities (or scores) and gradients are apart.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from models.recipe import LoRA
from tasks.core.lora import lora_config
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


class Case(NamedTuple):
    """A micro-batch: prompts of these lengths in tokens, and completions of each."""

    name: str
    stage: str
    prompts: tuple[int, int]
    completions: tuple[int, int]
    groups: tuple[int, ...]
    common: int = 0


CASES = (
    Case("GRPO, quickstart", "grpo", (42, 42), (4, 4), (8,) * 4),
    Case("GRPO, GSM8K", "grpo", (100, 100), (50, 200), (8,)),
    Case("GRPO, GSM8K, 8 rows of 4 groups", "grpo", (80, 120), (50, 200), (3, 2, 2, 1)),
    Case("GRPO, 8 prompts of their own", "grpo", (80, 120), (50, 200), (1,) * 8),
    Case("DPO, HH", "dpo", (130, 200), (60, 130), (2,) * 2),
    Case("DPO, UltraFeedback", "dpo", (60, 120), (200, 350), (2,) * 2),
    Case("reward model, HH", "reward", (130, 200), (60, 130), (2,) * 2),
    Case("reward model, HH, system prompt of 100", "reward", (130, 200), (60, 130), (2,) * 2, 100),
)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose names begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| micro-batch | rows x tokens | TRL in s | shared in s | times faster | log-probabilities | gradients |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        if case.name.startswith(options.only):
            print(compare(case, DTYPES[options.precision], options.rounds), flush=True)


def compare(case: Case, dtype: torch.dtype, rounds: int) -> str:
    """A line of the table."""
    rows = micro_batch(case)
    theirs, ours = (build(case.stage, dtype) for _ in range(2))
    share_prompts(ours)
    step = STEPS[case.stage]
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    turns = {"theirs": theirs, "ours": ours}
    for model in turns.values():  # the first batch is computed in both ways
        step(model, {name: tensor[:2, :64] for name, tensor in rows.items()})
    for index in range(rounds):
        for name in turns if index % 2 else reversed(turns):
            started = time.process_time()
            step(turns[name], rows).sum().backward()  # type: ignore[no-untyped-call]
            seconds[name].append(time.process_time() - started)
    off = float((step(ours, rows) - step(theirs, rows)).detach().abs().max())
    figures = f"{spread(seconds['theirs'])} | {spread(seconds['ours'])}"
    faster = median(seconds["theirs"]) / median(seconds["ours"])
    size = " x ".join(map(str, rows["input_ids"].shape))
    return f"| {case.name} | {size} | {figures} | {faster:.2f} | {off:.1e} | {difference(ours, theirs):.1e} |"


def spread(seconds: list[float]) -> str:
    """Median, fastest and slowest."""
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


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
    """As GRPO asks for them."""
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


STEPS: dict[str, Callable[[Any, Rows], torch.Tensor]] = {
    "grpo": log_probabilities,
    "dpo": log_ratios,
    "reward": scores,
}

if __name__ == "__main__":
    main()
