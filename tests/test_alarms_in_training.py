"""Alarms of real trainings on a tiny model: raised, written, told, stopping a stage, and silent after a resume."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client

from models.alarms import Alarm, Alarms
from models.artifacts import Checkpoint
from models.errors import StageError
from models.recipe import Recipe
from models.rewards import Reward
from models.sources import DatasetSource
from models.stages import BaseModelInput, TrainingInput
from tasks.alarms import read_alarms
from tasks.core import entry
from tasks.ledger import read_attempts
from tasks.progress import Progress, listening
from tests.test_core import Laboratory, plan
from tests.tiny import PROMPTS, answer, run_align, tiny_recipe, write_rows

pytestmark = pytest.mark.slow
SOON = Alarms(window=1)


@pytest.fixture(scope="module")
def laboratory(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    folder = tmp_path_factory.mktemp("alarms")
    stage = BaseModelInput(source=recipe.base_model, origin={"files": "tiny"}, precision="fp32")
    entry.convert(stage, recipe.base_model.name, folder / "base", lambda _: None)
    base = Checkpoint(path=folder / "base", fingerprint="0" * 64, stage="base", precision="fp32")
    return Laboratory(folder, recipe, base)


def watched(stage: TrainingInput, alarms: Alarms) -> TrainingInput:
    return stage.model_copy(update={"alarms": alarms})


def train(stage: TrainingInput, folder: Path, every: int = 25) -> list[Alarm]:
    """Train in this process; the alarms that were reported."""
    told: list[Alarm] = []

    def listen(said: dict[str, Any]) -> None:
        if "alarm" in said:
            assert Progress(stage=stage.name, **said).step == said["step"]
            told.append(said["alarm"])

    door: Callable[..., Any] = getattr(entry, stage.stage)
    door(stage, plan(checkpoint_every_steps=every), folder, listen)
    return told


def names(alarms: list[Alarm] | tuple[Alarm, ...]) -> list[str]:
    return [alarm.name for alarm in alarms]


@pytest.mark.parametrize(("mode", "seen"), [("lora", "loss was nan"), ("full", "grad_norm was nan")])
def test_a_loss_that_is_no_number_stops_the_stage(laboratory: Laboratory, tmp_path: Path, mode: str, seen: str) -> None:
    stage = laboratory.stage("sft", mode, learning_rate=1e30)
    with pytest.raises(StageError, match=rf"stopped at step \d by the alarm loss_not_finite: {seen}.*learning_rate"):
        train(stage, tmp_path, every=1)
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path / "trainer").glob("checkpoint-4"))


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo"])
def test_ordinary_training_breaks_nothing(laboratory: Laboratory, tmp_path: Path, name: str) -> None:
    stage = laboratory.stage(name, max_steps=12, learning_rate=1e-3)
    told = train(stage, tmp_path)
    # A random model never ends its replies; that is what an alarm is for.
    assert names(told) == (["clipped_completions"] if name == "grpo" else [])
    assert read_alarms(tmp_path / "model") == tuple(told)
    assert (tmp_path / "model" / "alarms.json").exists() == bool(told)


def test_equal_rewards_and_replies_without_end_are_told_and_written(laboratory: Laboratory, tmp_path: Path) -> None:
    rewards = (Reward(kind="exact_answer"),)
    stage = laboratory.stage("grpo", rewards=rewards, max_steps=6)
    told = train(stage, tmp_path)
    assert set(names(told)) == {"no_reward_spread", "clipped_completions", "gradient_zero"}
    assert {alarm.step for alarm in told} == {5}
    written = json.loads((tmp_path / "model" / "alarms.json").read_text())
    assert [Alarm.model_validate(each) for each in written] == told


def test_a_reward_model_of_random_pairs_is_at_chance(laboratory: Laboratory, tmp_path: Path) -> None:
    draw = random.Random(1)
    pairs = [
        {"prompt": prompt, "chosen": str(draw.randint(10, 99)), "rejected": str(draw.randint(10, 99))}
        for prompt in PROMPTS
    ]
    source = DatasetSource(path=str(write_rows(tmp_path / "pairs.jsonl", pairs)))
    stage = laboratory.stage("reward", dataset=source, max_steps=8, learning_rate=1e-6)
    assert names(train(stage, tmp_path / "stage")) == ["reward_accuracy_at_chance"]


def test_chosen_answers_that_fall_raise_an_alarm(laboratory: Laboratory, tmp_path: Path) -> None:
    pairs = [{"prompt": p, "chosen": f"The sum is {answer(p)}", "rejected": "The sum is"} for p in PROMPTS[:48]]
    source = DatasetSource(path=str(write_rows(tmp_path / "pairs.jsonl", pairs)))
    stage = laboratory.stage("dpo", "full", dataset=source, max_steps=20, learning_rate=1e-1)
    alarms = Alarms(window=2, chosen_logps_falling=1.0)
    assert "chosen_logps_falling" in names(train(watched(stage, alarms), tmp_path / "stage"))


def test_a_resumed_stage_does_not_raise_an_alarm_again(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("grpo", rewards=(Reward(kind="exact_answer"),), max_steps=8)
    told: list[Alarm] = []

    def interrupted(said: dict[str, Any]) -> None:
        told.extend([said["alarm"]] if "alarm" in said else [])
        if said.get("step") == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entry.grpo(stage, plan(checkpoint_every_steps=6), tmp_path, interrupted)  # type: ignore[arg-type]
    assert "no_reward_spread" in names(told)
    assert train(stage, tmp_path) == []
    assert list(read_alarms(tmp_path / "model")) == told


def test_a_stopped_stage_goes_on_once_its_alarm_does_not_stop_it(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("grpo", rewards=(Reward(kind="exact_answer"),), max_steps=8)
    stopping = watched(stage, Alarms(window=3, stop=("no_reward_spread",)))
    for _ in range(2):  # asking again changes nothing
        with pytest.raises(StageError, match=r"step 3 by the alarm no_reward_spread: .*alarms\.no_reward_spread, 0\.7"):
            train(stopping, tmp_path, every=2)
    assert [path.name for path in (tmp_path / "trainer").glob("checkpoint-*")] == ["checkpoint-2"]
    assert "no_reward_spread" in names(train(watched(stage, Alarms(window=3)), tmp_path, every=2))
    again = tmp_path / "done"
    train(watched(stage, Alarms(window=3)), again)
    with pytest.raises(StageError, match="step 3 by the alarm"):  # what was logged counts under the recipe as it is now
        train(stopping, again)


def test_what_stops_a_stage_is_in_the_runs_record_and_in_prefect(
    prefect_api: None, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    alarms = {"window": 1, "gradient_exploding": 1e-6, "stop": ["clipped_completions"]}
    plain = tiny_recipe(tiny_model, tiny_data, reward=None, dpo=None) | {"alarms": alarms}
    plain["grpo"]["rewards"] = [{"kind": "exact_answer"}]
    shown: list[Progress] = []
    with listening(shown.append):
        run = run_align(Recipe.model_validate(plain), tmp_path)
    assert run.state == "FAILED"
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert "stopped at step 1 by the alarm clipped_completions" in record["error"]
    (partial,) = tmp_path.glob("**/grpo-*/attempts.jsonl")
    assert [attempt.outcome for attempt in read_attempts(partial.parent)] == ["failed"]
    assert "clipped_completions" in {report.alarm.name for report in shown if report.alarm}
    artifacts = published(f"alarms-{partial.parent.name}")
    assert any("clipped_completions" in data for data in artifacts)


def published(key: str) -> list[str]:
    """The content of the artifacts of that key."""
    with get_client(sync_client=True) as client:
        question = {"artifacts": {"key": {"any_": [key]}}}
        found = client._client.post("/artifacts/filter", json=question).raise_for_status().json()
    return [each["data"] for each in found]


def test_a_finished_runs_report_and_record_have_its_alarms(
    prefect_api: None, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    alarms = {"window": 1, "gradient_exploding": 1e-6}
    plain = tiny_recipe(tiny_model, tiny_data, reward=None, dpo=None, grpo=None) | {"alarms": alarms}
    first = run_align(Recipe.model_validate(plain), tmp_path).record
    cached = run_align(Recipe.model_validate(plain), tmp_path).record
    for record in (first, cached):
        assert [(each.stage, names(each.alarms)) for each in record.stages] == [
            ("base", []),
            ("sft", ["gradient_exploding"]),
        ]
        assert record.report
        assert "1 alarm while training" in record.report.read_text()
    sft = first.stages[1].checkpoint
    assert read_alarms(sft.path) == first.stages[1].alarms
    assert "alarms.json" in (sft.path / "manifest.json").read_text()
    assert any("gradient_exploding" in data for data in published(f"alarms-{sft.name}"))
