"""A user's function as a recipe names it: found without running it, or refused with the nearest name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from models.artifacts import Checkpoint, Dataset
from models.errors import InputError
from models.recipe import GRPO
from models.sources import DatasetSource
from models.stages import GRPOInput
from settings.recipes import load_recipe
from tasks.reward_functions import check_function, function_digests, function_file
from tests.tiny import tiny_recipe

GOOD = (
    "raise SystemExit('it ran')\n\nasync def brevity(completions, **kwargs):\n    return [0.0 for _ in completions]\n"
)


def grpo_with(*rewards: dict[str, Any], **functions: str) -> GRPOInput:
    asked = GRPO.model_validate({"dataset": DatasetSource(path="prompts.jsonl"), "rewards": rewards})
    policy = Checkpoint(path=Path("/sft"), fingerprint="a" * 64, stage="sft", precision="fp32")
    rows = Dataset(path=Path("/rows"), fingerprint="b" * 64, rows=1, source="")
    return GRPOInput(policy=policy, dataset=rows, hyperparameters=asked, functions=functions, seed=0, precision="fp32")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("brevity", GOOD, None),
        ("brevitty", GOOD, "no function 'brevitty'; did you mean 'brevity'"),
        ("xyz", GOOD, "it defines: brevity"),
        ("loaded", "from elsewhere import loaded\n", None),
        ("built", "built = object()\n", None),
        ("brevity", "def brevity(completions):\n    return []\n", "line 1: brevity has no [*][*]kwargs"),
        ("brevity", "def brevity(:\n", "not valid Python"),
    ],
)
def test_a_function_is_checked_in_its_file_without_running_it(
    name: str, text: str, told: str | None, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(text)
    if told is None:
        check_function(f"{tmp_path / 'mine.py'}:{name}")
        return
    with pytest.raises(InputError, match=told):
        check_function(f"{tmp_path / 'mine.py'}:{name}")


def test_a_file_that_is_not_there_is_refused_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(GOOD)
    with pytest.raises(InputError, match=r"no such file; did you mean 'rewards.py'"):
        check_function(f"{tmp_path / 'reward.py'}:brevity")


def test_a_module_is_found_in_its_package_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "__init__.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "judges" / "short.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert function_file("judges.short:brevity") == tmp_path / "judges" / "short.py"
    with pytest.raises(InputError, match="no such module"):
        function_file("judges.long:brevity")


@pytest.mark.parametrize("wrong", ["brevity", "mine.py:", ":brevity", "mine.py:not a name"])
def test_an_entrypoint_says_where_and_which(wrong: str) -> None:
    with pytest.raises(ValueError, match="does not say where and which"):
        grpo_with({"kind": "function", "function": wrong})


def test_paths_start_at_the_recipe(tmp_path: Path) -> None:
    rewards = [
        {"kind": "function", "function": "mine.py:brevity"},
        {"kind": "function", "function": "judges.short:brevity", "name": "short"},
        {"kind": "reward_model", "name": "near", "model": "./scorer"},
        {"kind": "reward_model", "name": "far", "model": "organisation/scorer"},
    ]
    recipe = tiny_recipe(tmp_path, tmp_path, grpo={"rewards": rewards}, reward=None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    asked = load_recipe(str(tmp_path / "recipe.yaml")).grpo
    assert asked
    assert [reward.function for reward in asked.rewards[:2]] == [f"{tmp_path}/mine.py:brevity", "judges.short:brevity"]
    assert [reward.model for reward in asked.rewards[2:]] == [f"{tmp_path}/scorer", "organisation/scorer"]
    assert [reward.without_folders().function for reward in asked.rewards[:1]] == ["mine.py:brevity"]


def test_what_was_trained_before_there_were_options_keeps_its_name() -> None:
    rewards = grpo_with({"kind": "exact_answer"}).identity()["hyperparameters"]["rewards"]
    assert rewards == [{"kind": "exact_answer", "weight": 1.0}]


@pytest.mark.parametrize(
    ("change", "trains_anew"),
    [
        ({"options": {"words": 20}}, True),
        ({"weight": 0.5}, True),
        ({"function": "mine.py:other"}, True),
        ({"function": "elsewhere/mine.py:brevity"}, False),
        ({"name": "short", "weight": 1.0}, False),
        ({"timeout_seconds": 5.0, "memory_limit_bytes": 2**30, "failures_allowed": 0.1}, False),
    ],
)
def test_what_a_function_gives_decides_the_fingerprint_and_how_it_is_run_does_not(
    change: dict[str, Any], trains_anew: bool
) -> None:
    asked: dict[str, Any] = {"kind": "function", "function": "mine.py:brevity"}
    label = change.get("name") or change.get("function", "mine.py:brevity").rpartition(":")[2]
    changed = grpo_with(asked | change, **{label: "c" * 64})
    assert (changed.fingerprint != grpo_with(asked, brevity="c" * 64).fingerprint) == trains_anew


def test_a_changed_file_trains_anew(tmp_path: Path) -> None:
    reward, made = {"kind": "function", "function": f"{tmp_path / 'mine.py'}:brevity"}, set()
    for text in (GOOD, GOOD + "\n"):
        (tmp_path / "mine.py").write_text(text)
        digests = function_digests(grpo_with(reward).hyperparameters)
        made.add(grpo_with(reward, **digests).fingerprint)
    assert len(made) == 2
