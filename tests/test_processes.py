"""Several processes that train as one: the same weights as one process gives, and one failure for all of them.

Everything runs for real on two CPU processes. Accelerate shards only on accelerators; a stand-in tells it that the two
processes have some.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task

from models.artifacts import Checkpoint
from models.errors import InputError, Killed, OutOfMemory, StageError, Stopped
from models.launch import Launch
from models.recipe import Recipe
from models.rewards import Reward
from models.run import RunRecord
from models.stages import TrainingInput
from settings.settings import Settings
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.plan import TrainingPlan, split_batch
from tasks.execution import Execution, plan_execution
from tasks.forecast import stage_inputs
from tasks.launch import meeting
from tasks.preflight import preflight
from tasks.stage import RETRIES, run_stage, worth_another_attempt
from tasks.store import read_manifest
from tests import ranks
from tests.faults import checkpoints, without_sft
from tests.test_child import gone
from tests.test_core import BATCH, Laboratory, Trained, silent
from tests.test_out_of_memory import relative_difference
from tests.tiny import run_align

pytestmark = pytest.mark.slow
SAME = 1e-5


def run(
    function: Callable[..., Any],
    *arguments: Any,
    processes: int = 2,
    on_report: Callable[[Any], None] = silent,
    on_line: Callable[[str], None] = silent,
) -> Any:
    """What the function returns that so many processes run as one."""
    options = ChildOptions(threads=1, launch=meeting(Launch(processes=processes)))
    return run_in_child(function, arguments, options, on_report, on_line)


def test_the_first_process_speaks_for_all() -> None:
    reports: list[Any] = []
    lines: list[str] = []
    told = run(ranks.introducing, on_report=reports.append, on_line=lines.append)
    assert told == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert (reports, lines) == ([0], ["process 0"])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (ranks.first_failing, InputError, "row 3 is empty"),
        (ranks.second_killed, Killed, "SIGKILL"),
        (ranks.second_without_memory, OutOfMemory, "MemoryError"),
        (ranks.second_raising, StageError, "ValueError: the fault itself\nTraceback"),
        (ranks.second_silent, StageError, "exit code 3.*\n  the last words of the second"),
    ],
)
def test_what_ends_one_ends_all(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    processes: list[int] = []
    with pytest.raises(error, match=message) as caught:
        run(function, on_report=processes.append)
    assert caught.type is error
    assert all(gone(process) for process in processes)


def test_a_reward_that_fails_in_another_process_is_told_with_its_traceback(tmp_path: Path) -> None:
    text = "def reward(completions, fails, **_):\n    if fails:\n        raise KeyError('answer')\n    return [1.0]\n"
    (tmp_path / "mine.py").write_text(text)
    (told,) = json.loads(run(ranks.second_with_a_failing_reward, f"{tmp_path / 'mine.py'}:reward", tmp_path)).values()
    assert told["exception"] == 1
    assert "KeyError: 'answer'" in told["last"]


def plan(processes: int, **changes: Any) -> TrainingPlan:
    micro, accumulation = split_batch(BATCH // processes, 2)
    asked: dict[str, Any] = {"checkpoint_every_steps": 2, "gradient_accumulation_steps": accumulation} | changes
    return TrainingPlan(device="cpu", per_device_train_batch_size=micro, processes=processes, **asked)


@pytest.fixture(scope="module")
def laboratory(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory.of(recipe, tmp_path_factory.mktemp("processes"))


def train(stage: TrainingInput, folder: Path, processes: int = 2, **changes: Any) -> Trained:
    asked = plan(processes, **changes)
    return Trained(stage, run(ranks.door, stage, asked, folder, processes=processes), folder)


def fail(how: str, stage: TrainingInput, folder: Path, processes: int = 2, **changes: Any) -> None:
    """A training that comes to its third step, or to its end."""
    with pytest.raises({"out of memory": OutOfMemory, "told to stop": Stopped}.get(how, Killed)):
        run(partial(ranks.struck, how), stage, plan(processes, **changes), folder, processes=processes)


faults = pytest.mark.faults
CASES = [
    pytest.param("sft", "lora", "killed", 2, 2, id="killed"),
    pytest.param("dpo", "lora", "out of memory", 2, 1, id="out of memory, then one process"),
    pytest.param("reward", "lora", "killed", 1, 2, id="one process, then two"),
    pytest.param("dpo", "lora", "killed at the end", 2, 2, id="killed at the end", marks=faults),
    pytest.param("sft", "full", "out of memory", 1, 2, id="all weights, one process, then two", marks=faults),
    pytest.param("dpo", "4-bit", "killed", 2, 2, id="4 bits"),
]


@pytest.mark.parametrize(("name", "mode", "how", "before", "after"), CASES)
def test_what_one_process_ends_in_several_end_in_too(
    laboratory: Laboratory, tmp_path: Path, name: str, mode: str, how: str, before: int, after: int
) -> None:
    stage = laboratory.stage(name, mode, max_steps=4)
    alone = laboratory.train(stage, tmp_path / "alone")
    fail(how, stage, tmp_path / "together", before)
    together = train(stage, tmp_path / "together", after)
    assert together.result.resumed_from_step == (4 if how == "killed at the end" else 2)
    assert relative_difference(together.model, alone.model) <= SAME
    assert {path.name for path in together.model.iterdir()} == {path.name for path in alone.model.iterdir()}
    logs = [{entry["step"]: entry["loss"] for entry in trained.history} for trained in (alone, together)]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_one_that_is_told_to_stop_stops_all_at_the_same_step(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("sft", max_steps=6)
    fail("told to stop", stage, tmp_path, checkpoint_every_steps=25)
    assert [path.parent.name for path in tmp_path.glob("trainer/*/seal.json")] == ["checkpoint-4"]
    assert {path.name for path in tmp_path.glob("trainer/checkpoint-4/rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_processes_of_grpo_sample_on_their_own(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("grpo", rewards=laboratory.recipe.grpo.rewards[:1], max_steps=4)  # type: ignore[union-attr]
    one, two = laboratory.train(stage, tmp_path / "one"), train(stage, tmp_path / "two")
    keys = [set(trained.history[0]) - {"step_time"} for trained in (one, two)]
    assert keys[0] == keys[1]
    for entry_of_one, entry_of_two in zip(one.history, two.history, strict=True):
        assert entry_of_two["num_tokens"] == pytest.approx(entry_of_one["num_tokens"], rel=0.1)
        assert entry_of_two["completions/mean_length"] <= stage.hyperparameters.max_completion_length  # type: ignore[attr-defined]
    assert two.history[0]["reward_std"] != one.history[0]["reward_std"]
    assert two.history[0]["frac_reward_zero_std"] == 0  # the two processes' completions differ
    assert relative_difference(two.model, stage.policy.path) > 0


def test_grpo_learns_over_several_processes_what_its_reward_asks_for(laboratory: Laboratory, tmp_path: Path) -> None:
    digit = Reward(kind="regex", pattern="[0-9]")
    stage = laboratory.stage("grpo", "full", rewards=(digit,), max_steps=30, learning_rate=3e-2)
    one, two = laboratory.train(stage, tmp_path / "one"), train(stage, tmp_path / "two")
    for trained in (one, two):
        rewards = [step["reward"] for step in trained.history]
        assert len(rewards) == 30
        assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.4
    seen = [trained.history[-1]["num_tokens"] for trained in (one, two)]
    assert seen[1] == pytest.approx(seen[0], rel=0.1)  # as many completions in each step


@pytest.mark.parametrize(
    ("name", "mode", "how"),
    [
        ("sft", "lora", "killed"),
        pytest.param("sft", "lora", "killed at the end", marks=faults),
        pytest.param("dpo", "full", "killed at the end", marks=faults),
        pytest.param("reward", "lora", "out of memory", marks=faults),
        pytest.param("grpo", "lora", "killed", marks=faults),
    ],
)
def test_shards_learn_what_whole_models_do(
    laboratory: Laboratory, tmp_path: Path, name: str, mode: str, how: str
) -> None:
    stage = laboratory.stage(name, mode, max_steps=4)
    fail(how, stage, tmp_path / "sharded", sharding="fsdp2")
    sharded = train(stage, tmp_path / "sharded", sharding="fsdp2")
    assert sharded.result.resumed_from_step == (4 if how == "killed at the end" else 2)
    whole = train(stage, tmp_path / "whole") if name == "grpo" else laboratory.train(stage, tmp_path / "whole")
    assert relative_difference(sharded.model, whole.model) <= SAME


@task(retries=RETRIES, retry_condition_fn=worth_another_attempt)
def train_starving(stage: TrainingInput, execution: Execution) -> Checkpoint:
    """SFT, where memory is short."""
    return run_stage(stage, ranks.starving, execution)


@flow(validate_parameters=False)
def starving_flow(stage: TrainingInput, execution: Execution) -> Checkpoint:
    """One stage."""
    return train_starving.submit(stage, execution).result()


@faults
def test_want_of_memory_in_one_process_makes_the_batches_of_all_smaller(
    finished_run: tuple[Path, RunRecord], recipe: Recipe, tmp_path: Path
) -> None:
    home, expected = without_sft(finished_run[0], tmp_path / "home")
    settings = Settings(home=home, processes=2, checkpoint_every_steps=1, reserved_disk_bytes=0)
    execution = plan_execution(recipe, settings)
    stage, *_ = stage_inputs(recipe, preflight(recipe, settings).datasets, execution)
    made = starving_flow(stage, execution)
    attempts = read_manifest(made.path).attempts
    assert made.path.name == expected.name
    assert [attempt.outcome for attempt in attempts] == ["out_of_memory", "completed"]
    assert [(attempt.per_device_train_batch_size, attempt.processes) for attempt in attempts] == [(4, 2), (2, 2)]
    assert attempts[-1].resumed_from_step == 1
    assert relative_difference(made.path, expected) <= SAME


@faults
def test_a_run_of_two_processes_finds_what_one_has_made_and_makes_the_same(
    finished_run: tuple[Path, RunRecord], recipe: Recipe, tmp_path: Path
) -> None:
    record = run_align(recipe, tmp_path / "home", {"ALIGN_PROCESSES": "2"}).record
    assert record.state == "completed"
    alone, together = checkpoints(finished_run[0]), checkpoints(tmp_path / "home")
    assert {stage: path.name for stage, path in together.items()} == {stage: path.name for stage, path in alone.items()}
    for stage in ("sft", "reward", "dpo"):
        assert relative_difference(together[stage], alone[stage]) <= SAME
        assert [attempt.processes for attempt in read_manifest(together[stage]).attempts] == [2]
