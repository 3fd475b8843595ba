"""Estimated against measured memory: four stages at three sizes, each trained for two steps in a child process.

    python -m benchmarks.memory [--full | --quantized] [--precision bf16]

The models have random weights. Prints a table in Markdown; more than 25 % off, or more than 10 % too low, ends with 1.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from models.artifacts import Checkpoint, Dataset
from models.evaluation import Estimate
from models.recipe import DPO, GRPO, SFT, Quantization, RewardModel
from models.sources import BaseModelSource
from models.stages import BaseModelInput, DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.plan import Footprint, StageShape, TrainingPlan, split_batch
from tasks.data.snapshot import read_rows
from tests.tiny import build_tiny_model, write_rows

TOO_HIGH, TOO_LOW = 0.25, -0.10


class Size(NamedTuple):
    """A model and a batch."""

    name: str
    shape: dict[str, int]
    batch_size: int
    micro_batch: int
    words: int


SIZES = (
    Size("6 M", {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 8192}, 16, 16, 60),
    Size("41 M", {"hidden_size": 512, "num_hidden_layers": 12, "vocab_size": 16384}, 16, 8, 40),
    Size("135 M", {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}, 16, 8, 20),
)


def main() -> int:
    """Measure everything and print the table."""
    options = argparse.ArgumentParser(description="Estimated against measured memory.")
    kind = options.add_mutually_exclusive_group()
    kind.add_argument("--full", action="store_true", help="train all weights in place of adapters")
    kind.add_argument("--quantized", action="store_true", help="hold the frozen weights in 4 bits")
    options.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    asked = options.parse_args()
    print("| model | stage | rows x tokens | estimate in MB | measured in MB | error |\n|---|---|---|---|---|---|")
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for row, error in compare(size, Path(folder) / size.name, asked):
                print(row, flush=True)
                errors.append(error)
    print(f"\n{len(errors)} stages, errors from {min(errors):+.0%} to {max(errors):+.0%}")
    return int(max(errors) > TOO_HIGH or min(errors) < TOO_LOW)


def compare(size: Size, folder: Path, asked: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """A line of the table and the error of each stage."""
    for stage in _stages(size, folder, asked):
        estimate = _estimate(stage, size)
        measured = _measure(stage, size, folder / "work" / stage.stage)
        error = estimate.peak / measured - 1
        shape = f"{size.micro_batch} x {estimate.longest_tokens}"
        figures = f"{estimate.peak / 1e6:.0f} | {measured / 1e6:.0f} | {error:+.0%}"
        yield f"| {size.name} | {stage.stage} | {shape} | {figures} |", error


def _stages(size: Size, folder: Path, asked: argparse.Namespace) -> Iterator[TrainingInput]:
    heads = {"num_attention_heads": size.shape["hidden_size"] // 64, "num_key_value_heads": 1, "head_dim": 64}
    wide = {"intermediate_size": size.shape["hidden_size"] * 8 // 3}
    path = build_tiny_model(folder / "model", dtype=asked.precision, shape=size.shape | heads | wide)
    policy = Checkpoint(path=path, fingerprint="0" * 64, stage="sft", precision=asked.precision)
    common: dict[str, Any] = {"policy": policy, "seed": 0, "precision": asked.precision}
    common["quantization"] = Quantization() if asked.quantized else None
    short: dict[str, Any] = {"max_steps": 2, "batch_size": size.batch_size, "max_length": 512}
    short |= {"dataset": {"path": "rows"}} | ({"lora": None} if asked.full else {})
    prompts = [f"{'count ' * size.words}{number}" for number in range(64)]
    replies = {"completion": "one two", "chosen": "one two", "rejected": "three four"}
    rows = [
        {"prompt": _said("user", prompt), "answer": ["7"]}
        | {key: _said("assistant", text) for key, text in replies.items()}
        for prompt in prompts
    ]
    common["dataset"] = _snapshot(folder / "rows", rows)
    yield SFTInput(hyperparameters=SFT.model_validate(short), **common)
    reward = RewardInput(hyperparameters=RewardModel.model_validate(short), **common)
    yield reward
    yield DPOInput(hyperparameters=DPO.model_validate(short), **common)
    short.pop("max_length")
    rewards = [{"kind": "reward_model"}, {"kind": "exact_answer"}]
    grpo = GRPO.model_validate(short | {"max_completion_length": 64, "rewards": rewards})
    path = folder / "work/reward/model"
    scorer = Checkpoint(path=path, fingerprint="1" * 64, stage="reward", precision=asked.precision)
    accuracy = Estimate(value=1.0, low=0.9, high=1.0, n=64)
    yield GRPOInput(hyperparameters=grpo, reward_model=scorer, reward_accuracy=accuracy, **common)


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _snapshot(folder: Path, rows: list[dict[str, Any]]) -> Dataset:
    write_rows(folder / "rows.jsonl", rows)
    return Dataset(path=folder, fingerprint="2" * 64, rows=len(rows), source="rows")


def _plan(size: Size) -> TrainingPlan:
    rows, accumulation = split_batch(size.batch_size, size.micro_batch)
    return TrainingPlan(
        device="cpu",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        share_prompts=False,  # which estimates do not know of
    )


def _estimate(stage: TrainingInput, size: Size) -> Footprint:
    rows = [*read_rows(stage.dataset.path)][-1:]
    shape = StageShape(
        stage=stage.stage,
        hyperparameters=stage.hyperparameters,
        precision=stage.precision,
        quantization=stage.quantization,
        plan=_plan(size),
        splits_generation=False,
        longest_rows=tuple(rows),
    )
    folder = BaseModelSource(source="folder", name=str(stage.policy.path))
    source = BaseModelInput(source=folder, origin={}, precision=stage.precision)
    found: list[Footprint] = _in_child(entry.estimate, source, folder.name, (shape,))[0]
    return found[0]


def _measure(stage: TrainingInput, size: Size, folder: Path) -> int:
    return _in_child(getattr(entry, stage.stage), stage, _plan(size), folder)[1]


def _in_child(function: Any, *arguments: Any) -> tuple[Any, int]:
    """What it returns and its peak memory."""
    peaks: list[int] = []
    options = ChildOptions(threads=2)
    done = run_in_child(function, arguments, options, lambda report: None, lambda line: None, peaks.append)
    return done, peaks[-1]


if __name__ == "__main__":
    sys.exit(main())
