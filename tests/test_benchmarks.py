"""What the benchmarks hold side by side: recipes of other lengths, and figures that must not differ."""

from pathlib import Path

import pytest

from benchmarks.heldout import apart
from benchmarks.micro_batches import Case, micro_batch
from benchmarks.shapes import SHAPES, write_recipe
from benchmarks.sides import covered
from models.evaluation import Estimate
from settings.recipes import load_recipe
from settings.settings import Settings
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


def test_what_ran_side_by_side_counts_once() -> None:
    assert covered([(4.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.5)]) == 6.0
    assert covered([(0.0, 1.0), (2.0, 3.0)]) == 2.0
    assert not covered([])
