"""The quickstart's data: made by its script, and held-out rows share no problem with any training file."""

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from settings.recipes import load_recipe, shipped_recipes

QUICKSTART = Path(__file__).parents[1] / "settings" / "quickstart"
TRAINING = ("sft", "preferences", "prompts")
HELDOUT = ("heldout", "heldout_preferences")


def problems(name: str) -> set[tuple[str, ...]]:
    """What each row asks, however it is put: its kind of task and its numbers without their order."""
    rows = [json.loads(line) for line in (QUICKSTART / f"{name}.jsonl").read_text().splitlines()]
    return {(re.sub(r"\d+", "", row["prompt"]), *sorted(re.findall(r"\d+", row["prompt"]))) for row in rows}


@pytest.mark.parametrize(("heldout", "training"), list(product(HELDOUT, TRAINING)))
def test_heldout_rows_share_no_problem_with_training_rows(heldout: str, training: str) -> None:
    assert problems(heldout)
    assert not problems(heldout) & problems(training)


def test_the_script_makes_the_shipped_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(QUICKSTART / "make_data.py"), str(tmp_path)], check=True)
    shipped = {path.name: path.read_bytes() for path in QUICKSTART.glob("*.jsonl")}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == shipped


def test_every_shipped_recipe_loads() -> None:
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    assert "quickstart" in recipes
