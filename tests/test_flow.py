"""The whole flow on a real Prefect API: nothing is trained twice, nothing is lost, and every end is on record."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from models.artifacts import Checkpoint, Manifest
from models.errors import InputError, StageError
from models.recipe import Recipe
from models.run import RunRecord
from models.stages import SFTInput
from settings.settings import load_settings
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.execution import Execution, plan_execution
from tasks.files import file_digest
from tasks.forecast import forecast
from tasks.preflight import preflight
from tasks.run_record import read_run, save_run
from tasks.stage import RETRIES, run_stage, worth_another_attempt
from tasks.store import damage, read_manifest
from tests.faults import checkpoints
from tests.test_contracts import INPUTS
from tests.tiny import Run, run_align

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "reward", "dpo", "grpo")


def task_runs(flow_run_id: UUID | None) -> list[TaskRun]:
    """The flow run's task runs, once the server knows how all of them ended."""
    assert flow_run_id
    with get_client(sync_client=True) as client:
        for _ in range(150):
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
            if found and all(run.state and run.state.is_final() for run in found):
                return found
            time.sleep(0.2)
    raise AssertionError([(run.name, run.state_name) for run in found])


def states(run: Run) -> dict[str, str | None]:
    """The state of each task run that trains or evaluates, by kind of checkpoint: `sft`, `evaluate dpo`."""
    return {
        found.name.rpartition("-")[0]: found.state_name
        for found in task_runs(run.flow_run_id)
        if found.name.startswith((*STAGES, "evaluate"))
    }


def files(home: Path) -> dict[Path, int]:
    """Every file of the finished checkpoints, with its time of change."""
    return {path: path.stat().st_mtime_ns for path in home.glob("checkpoints/[!.]*/**/*") if path.is_file()}


def weights(home: Path) -> dict[str, str]:
    return {stage: file_digest(path / "model.safetensors") for stage, path in checkpoints(home).items()}


def run_on_disk(home: Path, run: Run) -> RunRecord:
    (path,) = home.glob(f"runs/*-{str(run.flow_run_id)[:8]}/run.json")
    return RunRecord.model_validate_json(path.read_bytes())


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    """The recipe with a section left out, or with other values in it."""
    asked = recipe.model_dump()
    for name, values in sections.items():
        asked[name] = asked[name] | values if isinstance(values, dict) else values
    return Recipe.model_validate(asked)


def test_a_run_ends_with_its_record_and_report(finished_run: tuple[Path, RunRecord], recipe: Recipe) -> None:
    home, record = finished_run
    assert record.state == "completed"
    assert record.recipe == recipe
    assert [outcome.stage for outcome in record.stages] == ["base", *STAGES]
    assert not any(outcome.cached for outcome in record.stages)
    assert [result.checkpoint.stage for result in record.evaluations] == ["base", *STAGES]
    assert RunRecord.model_validate_json((home / "runs" / record.id / "run.json").read_bytes()) == record
    assert record.report == home / "runs" / record.id / "report.html"
    assert "<html" in record.report.read_text()


def test_every_folder_of_a_run_is_whole(finished_run: tuple[Path, RunRecord]) -> None:
    home, _ = finished_run
    folders = [path.parent for path in home.glob("*/*/manifest.json")]
    assert len(folders) == 1 + 5 + 4 + 5  # base model, datasets, checkpoints, evaluations
    assert [damage(folder) for folder in folders if damage(folder)] == []
    assert list(home.glob("*/.partial/*")) == []


def test_every_checkpoint_names_its_parents(finished_run: tuple[Path, RunRecord]) -> None:
    made = checkpoints(finished_run[0])
    parents = {stage: read_manifest(path).parents for stage, path in made.items()}
    assert parents["reward"]["policy"] == parents["dpo"]["policy"] == made["sft"].name
    assert (parents["grpo"]["policy"], parents["grpo"]["reward_model"]) == (made["dpo"].name, made["reward"].name)


def test_the_second_run_trains_nothing(home: Path, recipe: Recipe) -> None:
    before = files(home)
    run = run_align(recipe, home)
    assert states(run) == dict.fromkeys([*STAGES, *(f"evaluate {stage}" for stage in ("base", *STAGES))], "Cached")
    assert files(home) == before
    assert all(outcome.cached for outcome in run.record.stages)


def test_a_change_to_dpo_retrains_what_depends_on_it(home: Path, recipe: Recipe) -> None:
    before = files(home)
    run = run_align(changed(recipe, dpo={"beta": 0.3}), home)
    assert states(run) == dict.fromkeys(
        ["sft", "reward", *(f"evaluate {s}" for s in ("base", "sft", "reward"))], "Cached"
    ) | (dict.fromkeys(["dpo", "grpo", "evaluate dpo", "evaluate grpo"], "Completed"))
    assert {outcome.stage for outcome in run.record.stages if not outcome.cached} == {"dpo", "grpo"}
    assert before.items() <= files(home).items()


def test_a_forced_stage_is_trained_again_and_the_old_one_is_kept(home: Path, recipe: Recipe) -> None:
    before, made = weights(home), checkpoints(home)
    run = run_align(recipe, home, force=("dpo",))
    trained = {stage: state for stage, state in states(run).items() if stage in STAGES}
    assert trained == dict.fromkeys(STAGES, "Cached") | {"dpo": "Completed"}
    assert weights(home) == before
    (aside,) = (home / "checkpoints" / ".replaced").iterdir()
    assert aside.name.startswith(made["dpo"].name)
    save_run(run.record.model_copy(update={"state": "failed"}), home)
    again = run_align(recipe, home, resume=run.record.id)
    assert states(again)["dpo"] == "Cached"  # the run that forces it has it now
    assert again.record.id == run.record.id


def test_what_a_run_would_do_is_known_before(home: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(home))
    settings = load_settings()
    execution = plan_execution(recipe, settings)

    def told(wanted: Recipe, execution: Execution = execution) -> dict[str, tuple[str, str]]:
        stages = forecast(wanted, preflight(wanted, settings).datasets, execution)
        return {stage.stage: (stage.name, stage.state) for stage in stages}

    made = {stage: path.name for stage, path in checkpoints(home).items()}
    assert told(recipe) == {stage: (made[stage], "cached") for stage in STAGES}
    states = {stage: state for stage, (_, state) in told(changed(recipe, dpo={"beta": 0.3})).items()}
    assert states == {"sft": "cached", "reward": "cached", "dpo": "new", "grpo": "new"}
    forced = told(recipe, execution.model_copy(update={"force": ("sft",)}))
    assert [state for _, state in forced.values()] == ["new", "cached", "cached", "cached"]
    (checkpoints(home)["dpo"] / "model.safetensors").unlink()
    assert [state for _, state in told(recipe).values()] == ["cached", "cached", "damaged", "cached"]
    without = changed(recipe, reward=None, dpo=None, grpo=None)
    assert told(without) == {"sft": (made["sft"], "cached")}


def test_another_recipe_does_not_resume_a_run(home: Path, recipe: Recipe, finished_run: tuple[Path, RunRecord]) -> None:
    name = finished_run[1].id
    assert "is completed" in str(run_align(recipe, home, resume=name).result)
    failed = save_run(finished_run[1].model_copy(update={"state": "failed"}), home)
    run = run_align(changed(recipe, seed=9), home, resume=name)
    assert isinstance(run.result, InputError)
    assert "has another recipe" in str(run.result)
    assert read_run(home / "runs" / name) == failed


def test_force_names_stages_of_the_recipe(home: Path, recipe: Recipe) -> None:
    run = run_align(changed(recipe, dpo=None), home, force=("dpo",))
    assert isinstance(run.result, InputError)
    assert "has no stage 'dpo'" in str(run.result)


def test_what_was_deleted_or_altered_is_trained_again_to_the_same_weights(home: Path, recipe: Recipe) -> None:
    before, made = weights(home), checkpoints(home)
    shutil.rmtree(made["sft"])
    altered = bytearray((made["dpo"] / "model.safetensors").read_bytes())
    altered[-100] ^= 1
    (made["dpo"] / "model.safetensors").write_bytes(altered)
    run = run_align(recipe, home)
    trained = {stage: state for stage, state in states(run).items() if stage in STAGES}
    assert trained == {"sft": "Completed", "reward": "Cached", "dpo": "Completed", "grpo": "Cached"}
    assert weights(home) == before
    (aside,) = (home / "checkpoints" / ".damaged").iterdir()
    assert aside.name.startswith(made["dpo"].name)
    assert (aside / "model.safetensors").read_bytes() == altered


def test_a_stage_is_shared_with_another_recipe(home: Path, recipe: Recipe) -> None:
    run = run_align(changed(recipe, reward=None, dpo=None, grpo=None), home)
    # Without a reward model nothing scores the replies: that is another evaluation.
    assert states(run) == {"sft": "Cached", "evaluate base": "Completed", "evaluate sft": "Completed"}
    assert [outcome.stage for outcome in run.record.stages] == ["base", "sft"]


def test_grpo_without_dpo_starts_from_sft(home: Path, recipe: Recipe) -> None:
    rewards = {"rewards": ({"kind": "exact_answer"},), "max_steps": 1}
    run = run_align(changed(recipe, reward=None, dpo=None, grpo=rewards), home)
    grpo = run.record.stages[-1].checkpoint
    assert grpo.stage == "grpo"
    parents = read_manifest(grpo.path).parents
    assert parents["policy"] == checkpoints(home)["sft"].name
    assert "reward_model" not in parents


def test_a_failed_stage_is_on_record_with_its_message(home: Path, recipe: Recipe) -> None:
    endless = changed(recipe, sft={"max_steps": 1_000_000}, reward=None, dpo=None, grpo=None)
    run = run_align(endless, home, {"ALIGN_STAGE_TIMEOUT_SECONDS": "5"})
    assert run.state == "FAILED"
    assert "ALIGN_STAGE_TIMEOUT_SECONDS" in str(run.result)
    record = run_on_disk(home, run)
    assert record.state == "failed"
    assert record.finished
    assert "ALIGN_STAGE_TIMEOUT_SECONDS" in record.error
    assert states(run) == {"sft": "Failed"}
    (ledger,) = home.glob("checkpoints/.partial/sft-*/attempts.jsonl")
    assert [json.loads(line)["outcome"] for line in ledger.read_text().splitlines()] == ["failed"]


def test_wrong_input_fails_before_anything_is_written(prefect_api: None, recipe: Recipe, tmp_path: Path) -> None:
    run = run_align(changed(recipe, sft={"dataset": {"path": "/nowhere.jsonl"}}), tmp_path / "home")
    assert isinstance(run.result, InputError)
    assert "/nowhere.jsonl" in str(run.result)
    assert not (tmp_path / "home").exists()


def test_the_flows_process_never_imports_torch(home: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(changed(recipe, seed=5, reward=None, dpo=None, grpo=None).model_dump_json())
    code = (
        "import sys; from pathlib import Path; from flows.align import align; from models.recipe import Recipe\n"
        "record = align(Recipe.model_validate_json(Path(sys.argv[1]).read_bytes()))\n"
        "print(record.state, sorted({'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)))\n"
    )
    from prefect.settings import PREFECT_API_URL

    environment = os.environ | {"ALIGN_HOME": str(home), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "recipe.json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "completed []"
    assert len(list(home.glob("checkpoints/sft-*"))) == 2


def hungry(stage: SFTInput, plan: TrainingPlan, workspace: Path, report: Any) -> TrainingResult:
    """A core that runs out of memory with more rows at once than `max_length` says."""
    if plan.per_device_train_batch_size > stage.hyperparameters.max_length:
        bytearray(2**62)
    (workspace / "model").mkdir()
    (workspace / "model" / "weights").write_text("trained")
    return TrainingResult(metrics={"loss": 1.0}, resumed_from_step=0)


@task(retries=RETRIES, retry_condition_fn=worth_another_attempt)
def train_hungry(stage: SFTInput, execution: Execution) -> Checkpoint:
    """A stage like the four others."""
    return run_stage(stage, hungry, execution)


@flow
def hungry_flow(stage: SFTInput, execution: Execution) -> Checkpoint:
    """One stage."""
    return train_hungry.submit(stage, execution).result()


def starving(fitting_rows: int) -> SFTInput:
    stage = INPUTS["sft"]
    asked = stage.hyperparameters.model_copy(update={"batch_size": 8, "max_length": fitting_rows})
    made = stage.model_copy(update={"hyperparameters": asked})
    assert isinstance(made, SFTInput)
    return made


@pytest.fixture
def machine(execution: Execution, prefect_api: None) -> Execution:
    return execution


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    return read_manifest(checkpoint.path)


def test_out_of_memory_is_retried_with_half_the_micro_batch(machine: Execution) -> None:
    state = hungry_flow(starving(2), machine, return_state=True)
    attempts = manifest_of(state.result()).attempts
    assert [attempt.outcome for attempt in attempts] == ["out_of_memory", "out_of_memory", "completed"]
    assert [attempt.per_device_train_batch_size for attempt in attempts] == [8, 4, 2]
    rows = {attempt.per_device_train_batch_size * attempt.gradient_accumulation_steps for attempt in attempts}
    assert rows == {8}
    (only,) = task_runs(state.state_details.flow_run_id)
    assert only.run_count == 3


def test_one_row_that_does_not_fit_ends_with_advice(machine: Execution) -> None:
    state = hungry_flow(starving(1).model_copy(update={"seed": 3}), machine, return_state=True)
    assert manifest_of(state.result()).attempts[-1].per_device_train_batch_size == 1
    hopeless = starving(1)
    none_fits = hopeless.hyperparameters.model_copy(update={"max_length": 0})
    state = hungry_flow(hopeless.model_copy(update={"hyperparameters": none_fits}), machine, return_state=True)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, StageError)
    assert "out of memory with one row at a time" in str(error)
