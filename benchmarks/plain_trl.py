"""SFT, reward model, DPO and GRPO with plain TRL in one process: what a recipe trains, by hand.

    python benchmarks/plain_trl.py RECIPE_FILE BASE_MODEL_FOLDER OUTPUT_FOLDER SEED

Data, steps and hyperparameters are read from the recipe, so that both sides train the same.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

RECIPE = Path(sys.argv[1])
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
SAME_NAME = (
    *("learning_rate", "max_steps", "lr_scheduler_type", "max_length", "beta", "num_generations"),
    *("max_completion_length", "temperature", "num_iterations"),
)
"""Keys of the recipe that TRL calls the same."""

TRANSLATED = ("dataset", "batch_size", "warmup_ratio", "sft_weight", "rewards")
"""Keys of the recipe that are read under their own name below."""

OWN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "sft": lambda asked: {"completion_only_loss": True},
    "reward": lambda asked: {},
    "dpo": lambda asked: {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, asked["sft_weight"]]},
    "grpo": lambda asked: {"reward_weights": [one["weight"] for one in asked["rewards"]]},
}
"""Arguments of one stage's trainer."""

recipe = yaml.safe_load(RECIPE.read_text())


def arguments(stage: str, folder: Path, seed: int) -> dict[str, Any]:
    """The trainer's arguments for a stage of the recipe; the whole effective batch at once."""
    asked = recipe[stage]
    assert set(asked) <= {*SAME_NAME, *TRANSLATED}, f"{stage}: this script does not know {set(asked)}"  # noqa: S101
    return {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": asked["batch_size"],
        "warmup_steps": asked.get("warmup_ratio", 0.0),
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        **{key: asked[key] for key in SAME_NAME if key in asked},
        **OWN[stage](asked),
    }


def rows(stage: str) -> list[dict[str, Any]]:
    """The stage's rows as conversations that start with the recipe's system prompt."""
    path = RECIPE.parent / recipe[stage]["dataset"]["path"]
    return [conversational(json.loads(line)) for line in path.read_text().splitlines()]


def conversational(row: dict[str, Any]) -> dict[str, Any]:
    """A row of texts as a row of messages."""
    system = {"role": "system", "content": recipe["system_prompt"]}
    row["prompt"] = [system, {"role": "user", "content": row["prompt"]}]
    for side in ("completion", "chosen", "rejected"):
        if side in row:
            row[side] = [{"role": "assistant", "content": row[side]}]
    if "answer" in row:
        row["answer"] = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    return row


def load(folder: Path, head: Any = AutoModelForCausalLM, **options: Any) -> tuple[Any, Any]:
    """The model in the number format that it was written in, and its tokenizer."""
    return head.from_pretrained(folder, dtype="auto", **options), AutoTokenizer.from_pretrained(folder)


def train_and_merge(
    trainer: Any, parent: Path, folder: Path, head: Any = AutoModelForCausalLM, **options: Any
) -> float:
    """Train, save the adapter, merge it into a fresh load of its parent, and save the result.

    Returns:
        Seconds that the optimizer's steps took.
    """
    seconds: float = trainer.train().metrics["train_runtime"]
    trainer.save_model(folder / "adapter")
    model, tokenizer = load(parent, head, **options)
    PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return seconds


def train_sft(parent: Path, folder: Path, seed: int) -> float:
    """Supervised fine-tuning."""
    model, tokenizer = load(parent)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments("sft", folder, seed)),
        train_dataset=Dataset.from_list(rows("sft")).select_columns(["prompt", "completion"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    return train_and_merge(trainer, parent, folder)


def train_reward(parent: Path, folder: Path, seed: int) -> float:
    """Reward modelling."""
    torch.manual_seed(seed)  # the new head's weights
    model, tokenizer = load(parent, AutoModelForSequenceClassification, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments("reward", folder, seed)),
        train_dataset=Dataset.from_list(rows("reward")).select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", **LORA),
    )
    return train_and_merge(trainer, parent, folder, AutoModelForSequenceClassification, num_labels=1)


def train_dpo(parent: Path, folder: Path, seed: int) -> float:
    """Direct Preference Optimization."""
    model, tokenizer = load(parent)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments("dpo", folder, seed)),
        train_dataset=Dataset.from_list(rows("dpo")).select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    return train_and_merge(trainer, parent, folder)


def exact_answer(completions: list[Any], answer: list[list[str]], **_: Any) -> list[float]:
    """1 for a reply that is an accepted answer, else 0."""
    return [float(done[0]["content"].strip() in ok) for done, ok in zip(completions, answer, strict=True)]


def train_grpo(parent: Path, reward_model: Path, folder: Path, seed: int) -> float:
    """Group Relative Policy Optimization."""
    model, tokenizer = load(parent)
    scorer, scorer_tokenizer = load(reward_model, AutoModelForSequenceClassification)
    rewards = {"reward_model": (scorer, scorer_tokenizer), "exact_answer": (exact_answer, None)}
    asked = recipe["grpo"]["rewards"]
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(**arguments("grpo", folder, seed)),
        train_dataset=Dataset.from_list(rows("grpo")).select_columns(["prompt", "answer"]),
        reward_funcs=[rewards[one["kind"]][0] for one in asked],
        reward_processing_classes=[rewards[one["kind"]][1] for one in asked],
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    return train_and_merge(trainer, parent, folder)


def main(base: Path, output: Path, seed: int) -> None:
    """Train the four stages in order and write what each took to `figures.json`."""
    sft, reward, dpo, grpo = (output / name for name in ("sft", "reward", "dpo", "grpo"))
    figures = {
        "sft": measured(train_sft, base, sft, seed),
        "reward": measured(train_reward, sft, reward, seed),
        "dpo": measured(train_dpo, sft, dpo, seed),
        "grpo": measured(train_grpo, dpo, reward, grpo, seed),
    }
    (output / "figures.json").write_text(json.dumps(figures))


def measured(train: Callable[..., float], *arguments: Any) -> tuple[float, float, float]:
    """Seconds of a stage, of its optimizer steps, and the largest resident set meanwhile in GB, as Linux keeps it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.perf_counter()
    steps = train(*arguments)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return seconds, steps, int(status["VmHWM"].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
