"""What the benchmarks hold side by side: recipes of other lengths, and figures that must not differ."""

from importlib import import_module
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

from benchmarks.heldout import apart
from benchmarks.micro_batches import Case, micro_batch
from benchmarks.shapes import SHAPES, write_recipe
from benchmarks.sides import covered
from models.artifacts import Checkpoint, Dataset, TrainingStage
from models.evaluation import Estimate
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput
from settings.recipes import load_recipe, shipped_recipes
from settings.settings import Settings
from tasks.core.plan import TrainingPlan
from tasks.preflight import preflight


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shapes_recipe_can_be_run(shape: str, tiny_model: Path, tmp_path: Path) -> None:
    file = write_recipe(shape, tmp_path / "shape")
    recipe = load_recipe(str(file), ["--base_model.source", "folder", "--base_model.name", str(tiny_model)])
    assert preflight(recipe, Settings(home=tmp_path / "home")).needs
    assert write_recipe(shape, tmp_path / "again").with_name("sft.jsonl").read_bytes() == (
        file.with_name("sft.jsonl").read_bytes()
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "differs"),
    [((0.7, 0.9), (0.6, 0.75), False), ((0.7, 0.9), (0.3, 0.6), True), ((0.1, 0.2), (0.3, 0.6), True)],
)
def test_intervals_that_do_not_touch_are_a_difference(
    ours: tuple[float, float], theirs: tuple[float, float], differs: bool
) -> None:
    mine, other = ({"sft: exact match": Estimate(value=low, low=low, high=high, n=9)} for low, high in (ours, theirs))
    assert bool(apart(mine, other)) == differs


def test_a_micro_batch_has_the_lengths_that_are_asked_for() -> None:
    rows = micro_batch(Case("", "grpo", (5, 5), (2, 2), (3, 1), common=4))
    assert rows["input_ids"].shape == (4, 11)
    assert len({tuple(row[:4]) for row in rows["input_ids"].tolist()}) == 1
    assert len({tuple(row[:9]) for row in rows["input_ids"].tolist()}) == 2
    assert (rows["labels"] != -100).sum() == 8


PLAIN = Path(__file__).parent.parent / "benchmarks" / "plain_trl.py"
INPUTS: dict[TrainingStage, Any] = {"sft": SFTInput, "reward": RewardInput, "dpo": DPOInput, "grpo": GRPOInput}
CONFIGURATIONS = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
OF_NO_WEIGHT = {
    *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "save_strategy", "save_total_limit"),
    *("logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    *("num_train_epochs", "data_seed"),  # steps are given, and the seed
}


@pytest.mark.parametrize("name", ["quickstart", *SHAPES])
def test_both_sides_train_with_the_same_arguments(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_recipe(name, tmp_path / "shape") if name in SHAPES else shipped_recipes()[name]
    monkeypatch.setattr("sys.argv", ["plain_trl.py", str(file)])
    script, recipe = run_path(str(PLAIN)), load_recipe(str(file))
    policy = Checkpoint(path=tmp_path, fingerprint="0" * 64, stage="sft", precision="bf16")
    rows = Dataset(path=tmp_path, fingerprint="0" * 64, rows=1, source="rows")
    for stage, kind in INPUTS.items():
        asked = getattr(recipe, stage)
        plan = TrainingPlan(device="cpu", per_device_train_batch_size=asked.batch_size, gradient_accumulation_steps=1)
        made = kind(policy=policy, dataset=rows, hyperparameters=asked, seed=1, precision="bf16")
        make = getattr(import_module(f"tasks.core.{stage}"), f"{stage}_arguments")
        sides = (make(made, plan, tmp_path), script["arguments"](stage, tmp_path, 1))
        ours, theirs = (CONFIGURATIONS[stage](**side).to_dict() for side in sides)
        assert {key: ours[key] for key in ours.keys() - OF_NO_WEIGHT} == {
            key: theirs[key] for key in theirs.keys() - OF_NO_WEIGHT
        }


def test_what_ran_side_by_side_counts_once() -> None:
    assert covered([(4.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.5)]) == 6.0
    assert covered([(0.0, 1.0), (2.0, 3.0)]) == 2.0
    assert not covered([])
