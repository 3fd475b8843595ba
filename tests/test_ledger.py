"""Attempts and micro-batches: the effective batch never changes, and what was tried is never forgotten."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.artifacts import Attempt
from models.errors import Killed, OutOfMemory, StageError
from settings.machine import Machine
from settings.settings import Settings
from tasks import ledger
from tasks.core.plan import TrainingPlan, split_batch
from tasks.execution import Execution
from tasks.fits import Fit, forget, recall, remember
from tasks.forecast import _look_up
from tasks.ledger import AttemptRecorder, read_attempts
from tests.test_contracts import INPUTS


def attempt(micro: int, outcome: str) -> Attempt:
    return Attempt.model_validate(
        {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": 1,
            "started": "2026-01-31T14:06:00+00:00",
            "seconds": 1.0,
            "outcome": outcome,
        }
    )


def out_of_memory(*micros: int) -> tuple[Attempt, ...]:
    return tuple(attempt(micro, "out_of_memory") for micro in micros)


def limited(execution: Execution, largest: int) -> Execution:
    settings = execution.settings.model_copy(update={"per_device_train_batch_size": largest})
    return execution.model_copy(update={"settings": settings})


def plan_attempt(
    batch_size: int, attempts: tuple[Attempt, ...], execution: Execution, fit: Fit | None = None
) -> TrainingPlan:
    """The plan of a stage with that effective batch."""
    asked = INPUTS["sft"].hyperparameters.model_copy(update={"batch_size": batch_size, "max_length": 1024})
    stage = INPUTS["sft"].model_copy(update={"hyperparameters": asked})
    return ledger.plan_attempt(stage, attempts, execution, fit)


def make_execution() -> Execution:
    machine = Machine(device="cpu", name="test", cores=2, memory_bytes=2**34, native_bf16=False, accelerators=0)
    return Execution(settings=Settings(), machine=machine, precision="fp32", threads=1, parallel_stages=2)


def note(workspace: Path, plan: TrainingPlan, error: BaseException | None = None) -> None:
    """Go through one attempt that ends with `error`."""
    expected = suppress(type(error) if error else AssertionError)
    with expected, AttemptRecorder(workspace, plan, make_execution(), print) as recorder:
        for step in (4, 5, 6):
            recorder.report({"phase": "training", "step": step, "total_steps": 9})
        recorder.note_peak(1000)
        if error:
            raise error


PLAN = TrainingPlan(device="cpu", per_device_train_batch_size=4, gradient_accumulation_steps=2)


@given(batch_size=st.integers(1, 5000), largest=st.none() | st.integers(1, 5000))
def test_a_split_keeps_the_effective_batch(batch_size: int, largest: int | None) -> None:
    micro, accumulation = split_batch(batch_size, largest)
    assert micro * accumulation == batch_size
    assert 1 <= micro <= (largest or batch_size)
    between = range(micro + 1, min(batch_size, largest or batch_size) + 1)
    assert not any(batch_size % size == 0 for size in between)


@given(batch_size=st.integers(1, 5000))
def test_halving_comes_down_to_one_row_then_recomputes_and_then_says_what_helps(batch_size: int) -> None:
    execution = make_execution()
    attempts: tuple[Attempt, ...] = ()
    plan = plan_attempt(batch_size, attempts, execution)
    while not plan.gradient_checkpointing:
        micro = plan.per_device_train_batch_size
        attempts += out_of_memory(micro)
        plan = plan_attempt(batch_size, attempts, execution)
        assert plan.per_device_train_batch_size <= max(1, micro // 2)
        assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps == batch_size
    assert plan.per_device_train_batch_size == 1
    attempts += (attempt(1, "out_of_memory").model_copy(update={"gradient_checkpointing": True}),)
    with pytest.raises(StageError, match=r"change max_length from 1024 to 512, or take a smaller"):
        plan_attempt(batch_size, attempts, execution)


def test_weights_that_take_much_are_advised_to_be_held_in_4_bits(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * 10**9)  # a hole, which takes no space
    heavy = INPUTS["sft"].policy.model_copy(update={"path": tmp_path})
    stage = INPUTS["sft"].model_copy(update={"policy": heavy})
    recomputing = attempt(1, "out_of_memory").model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(StageError, match=r"or the 3\.0 GB of frozen weights to about a quarter, in 4 bits"):
        ledger.plan_attempt(stage, (*out_of_memory(1), recomputing), make_execution(), None)


def test_the_first_attempt_takes_the_whole_batch(execution: Execution) -> None:
    plan = plan_attempt(12, (), execution)
    assert (plan.per_device_train_batch_size, plan.gradient_accumulation_steps) == (12, 1)


@pytest.mark.parametrize(
    ("batch_size", "failed", "expected"),
    [(16, (16,), 8), (16, (16, 8), 4), (16, (8, 16), 4), (12, (12,), 6), (12, (12, 6), 3), (12, (3,), 1), (7, (7,), 1)],
)
def test_each_out_of_memory_halves_the_micro_batch_at_least(
    execution: Execution, batch_size: int, failed: tuple[int, ...], expected: int
) -> None:
    plan = plan_attempt(batch_size, out_of_memory(*failed), execution)
    assert plan.per_device_train_batch_size == expected
    assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps == batch_size


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "completed"])
def test_other_endings_change_nothing(execution: Execution, outcome: str) -> None:
    assert plan_attempt(16, (attempt(16, outcome),), execution).per_device_train_batch_size == 16


def test_what_ran_out_is_remembered_behind_other_endings(execution: Execution) -> None:
    attempts = (*out_of_memory(16), attempt(8, "failed"), attempt(8, "cancelled"))
    assert plan_attempt(16, attempts, execution).per_device_train_batch_size == 8


@pytest.mark.parametrize(
    ("largest", "failed", "expected"), [(4, (), 4), (4, (16,), 4), (4, (4,), 2), (5, (), 4), (99, (), 16)]
)
def test_the_machines_limit_holds(execution: Execution, largest: int, failed: tuple[int, ...], expected: int) -> None:
    plan = plan_attempt(16, out_of_memory(*failed), limited(execution, largest))
    assert plan.per_device_train_batch_size == expected


@pytest.mark.parametrize(("kills", "expected"), [((16,), 16), ((16, 16), 8), ((16, 16, 8), 8), ((16, 16, 8, 8), 4)])
def test_a_second_kill_at_the_same_size_counts_as_want_of_memory(
    execution: Execution, kills: tuple[int, ...], expected: int
) -> None:
    plan = plan_attempt(16, tuple(attempt(micro, "killed") for micro in kills), execution)
    assert plan.per_device_train_batch_size == expected


def test_what_fitted_before_is_where_the_next_stage_starts(execution: Execution) -> None:
    fit = Fit(per_device_train_batch_size=4, gradient_checkpointing=True)
    plan = plan_attempt(16, (), execution, fit)
    assert (plan.per_device_train_batch_size, plan.gradient_checkpointing) == (4, True)
    assert plan_attempt(2, (), execution, fit).per_device_train_batch_size == 2
    assert plan_attempt(16, (), limited(execution, 2), fit).per_device_train_batch_size == 2


def test_fits_are_known_by_machine_and_shape_of_the_job(execution: Execution) -> None:
    stage = INPUTS["dpo"]
    remember(stage, execution, PLAN)
    assert recall(stage, execution) == Fit(per_device_train_batch_size=4, gradient_checkpointing=False)
    asked = stage.hyperparameters

    def of(**changes: Any) -> Fit | None:
        other = asked.model_copy(update=changes)
        return recall(stage.model_copy(update={"hyperparameters": other}), execution)

    assert of(learning_rate=0.5, batch_size=128, max_steps=9)
    assert not of(max_length=8)
    assert not of(lora=None)
    larger = execution.machine.model_copy(update={"memory_bytes": 2**40})
    assert not recall(stage, execution.model_copy(update={"machine": larger}))
    assert forget(execution.settings.home) == 1
    assert not recall(stage, execution)


@pytest.mark.parametrize("processes", [1, 4])
def test_a_forecast_knows_what_fitted_with_as_many_processes(execution: Execution, processes: int) -> None:
    settings = execution.settings.model_copy(update={"processes": processes})
    asked = execution.model_copy(update={"settings": settings})
    remember(INPUTS["sft"], asked.of_training(), PLAN)
    assert _look_up(INPUTS["sft"], asked).fitted_batch_size == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gradient_checkpointing", True),
        ("checkpoint_every_steps", 3),
        ("checkpoint_every_minutes", 0.5),
        ("checkpoints_kept", 4),
        ("report_to", ("tensorboard",)),
    ],
)
def test_settings_reach_the_plan(execution: Execution, field: str, value: object) -> None:
    settings = execution.settings.model_copy(update={field: value})
    plan = plan_attempt(8, (), execution.model_copy(update={"settings": settings}))
    assert getattr(plan, field) == value


@pytest.mark.parametrize(
    ("error", "outcome", "cause"),
    [
        (None, "completed", ""),
        (OutOfMemory("no memory\nat all"), "out_of_memory", "no memory"),
        (Killed("by SIGKILL"), "killed", "by SIGKILL"),
        (StageError("diverged"), "failed", "diverged"),
        (ValueError(), "failed", "ValueError"),
        (KeyboardInterrupt(), "cancelled", "KeyboardInterrupt"),
    ],
    ids=["completed", "out of memory", "killed", "stage error", "without message", "interrupted"],
)
def test_every_ending_is_noted(tmp_path: Path, error: BaseException | None, outcome: str, cause: str) -> None:
    note(tmp_path, PLAN, error)
    (noted,) = read_attempts(tmp_path)
    assert (noted.outcome, noted.cause) == (outcome, cause)
    assert (noted.per_device_train_batch_size, noted.gradient_accumulation_steps) == (4, 2)
    assert (noted.machine, noted.device) == ("test", "cpu")
    assert (noted.resumed_from_step, noted.reached_step, noted.peak_memory_bytes) == (4, 6, 1000)
    assert noted.seconds >= noted.training_seconds > 0


def test_attempts_add_up_in_order(tmp_path: Path) -> None:
    for micro in (8, 4, 2):
        note(tmp_path, PLAN.model_copy(update={"per_device_train_batch_size": micro}), OutOfMemory("full"))
    assert [noted.per_device_train_batch_size for noted in read_attempts(tmp_path)] == [8, 4, 2]


def test_an_attempt_whose_process_died_is_on_record(tmp_path: Path) -> None:
    AttemptRecorder(tmp_path, PLAN, make_execution(), print).__enter__()
    assert [noted.outcome for noted in read_attempts(tmp_path)] == ["running"]
    note(tmp_path, PLAN)
    assert [noted.outcome for noted in read_attempts(tmp_path)] == ["died", "completed"]


def test_a_damaged_line_of_the_ledger_is_left_out(tmp_path: Path) -> None:
    note(tmp_path, PLAN)
    note(tmp_path, PLAN)
    lines = (tmp_path / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "attempts.jsonl").write_bytes(b"\xff" + lines[0] + lines[1])
    assert len(read_attempts(tmp_path)) == 1


def test_without_a_ledger_there_were_no_attempts(tmp_path: Path) -> None:
    assert read_attempts(tmp_path / "nowhere") == ()


def test_a_crash_while_the_ledger_is_written_loses_nothing(tmp_path: Path) -> None:
    note(tmp_path, PLAN)
    (tmp_path / ".attempts.jsonl.0123.unfinished").write_text('{"per_device')
    assert len(read_attempts(tmp_path)) == 1
    note(tmp_path, PLAN, OutOfMemory("full"))
    assert [noted.outcome for noted in read_attempts(tmp_path)] == ["completed", "out_of_memory"]
