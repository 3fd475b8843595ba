"""Running out of memory, in every form that libraries give it, and for real: stages fit in the end and learn the same.

A short selection runs in `make test`, all of it in `make test-faults`.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow, task
from safetensors.torch import load_file
from transformers import Trainer

from models.artifacts import Checkpoint, Manifest, Stage
from models.errors import OutOfMemory
from models.recipe import Recipe
from models.run import RunRecord
from models.stages import TrainingInput
from settings.settings import Settings
from tasks.core import entry
from tasks.core.memory import in_parts, is_out_of_memory
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.execution import Execution, plan_execution
from tasks.forecast import stage_inputs
from tasks.preflight import preflight
from tasks.stage import RETRIES, run_stage, worth_another_attempt
from tasks.store import read_manifest
from tests.faults import SETTINGS, STAGES, Scene, Strike, checkpoints
from tests.tiny import build_tiny_model, run_align, tiny_recipe, write_rows

slow = pytest.mark.slow
faults = pytest.mark.faults
Record = Callable[[str, object], None]

FORMS: dict[str, Callable[[], BaseException]] = {
    "torch": lambda: torch.OutOfMemoryError("Allocation on device"),
    "CUDA": lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 14.76 GiB total capacity)"),
    "CUDA error": lambda: RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "NCCL": lambda: RuntimeError("NCCL Error 1: unhandled cuda error. Cuda failure 2 'out of memory'"),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)"),
    "HIP": lambda: RuntimeError("HIP out of memory. Tried to allocate 512.00 MiB"),
    "HIP error": lambda: RuntimeError("HIP error: out of memory"),
    "XPU": lambda: RuntimeError("XPU out of memory, please use `empty_cache` to release all unoccupied memory"),
    "CPU allocator": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: error code 12"),
    "CPU allocator, Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"),
    "MemoryError": MemoryError,
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "system call": lambda: OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "bitsandbytes": lambda: RuntimeError("Error out of memory at line 383 in file /src/csrc/pythonInterface.cpp"),
    "vLLM cache": lambda: ValueError("No available memory for the cache blocks. Try increasing the memory share"),
    "vLLM start": lambda: ValueError("Free memory on device (3/15 GiB) is less than desired GPU memory utilization"),
}
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: device-side assert triggered"),
    FileNotFoundError(errno.ENOENT, "No such file", "CUDA out of memory.txt"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("cuda out of memory"),
    RuntimeError("can't start new thread"),
    ValueError("memory"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised(form: str) -> None:
    assert is_out_of_memory(FORMS[form]())
    wrapped = ValueError("the engine did not start")
    wrapped.__cause__ = FORMS[form]()
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_nothing_else_is(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("fitting", [1, 2, 3, 100])
def test_parts_are_halved_until_they_fit(fitting: int) -> None:
    sizes: list[int] = []

    def compute(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > fitting:
            raise MemoryError
        return [item * item for item in items]

    assert in_parts(compute, range(5)) == [item * item for item in range(5)]
    assert sum(size for size in sizes if size <= fitting) == 5


@pytest.mark.parametrize(("error", "calls"), [(MemoryError(), 2), (KeyError("x"), 1)])
def test_what_no_part_helps_against_is_raised(error: Exception, calls: int) -> None:
    called: list[int] = []

    def compute(items: Sequence[int]) -> list[int]:
        called.append(len(items))
        raise error

    with pytest.raises(type(error)):
        in_parts(compute, range(2))
    assert len(called) == calls


def starving(
    form: str, stage: TrainingInput, plan: TrainingPlan, folder: Path, report: Callable[[Any], None]
) -> TrainingResult:
    """Train, but run out of memory in the second step while more than half of the rows go through at once."""
    step_of_trainer = Trainer.training_step

    def training_step(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
        rows = plan.per_device_train_batch_size
        if trainer.state.global_step == 1 and rows > stage.hyperparameters.batch_size // 2:
            if form == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise FORMS[form]()
        return step_of_trainer(trainer, *arguments, **options)

    Trainer.training_step = training_step
    result: TrainingResult = getattr(entry, stage.stage)(stage, plan, folder, report)
    return result


@task(retries=RETRIES, retry_condition_fn=worth_another_attempt)
def train_starving(stage: TrainingInput, execution: Execution, form: str) -> Checkpoint:
    """One of the four stages."""
    return run_stage(stage, partial(starving, form), execution)


@flow(validate_parameters=False)
def starving_flow(stage: TrainingInput, execution: Execution, form: str) -> Checkpoint:
    """One stage."""
    return train_starving.submit(stage, execution, form).result()


def relative_difference(one: Path, other: Path) -> float:
    """Norm of the difference of two models' weights, relative to the norm of the second's."""
    weights = [load_file(path / "model.safetensors") for path in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    squares = sum(float((weights[0][name] - value).square().sum()) for name, value in weights[1].items())
    return float((squares / sum(float(value.square().sum()) for value in weights[1].values())) ** 0.5)


ALL = [(form, stage) for form in [*FORMS, "SIGKILL"] for stage in STAGES]
SHORT = {("CUDA error", "sft"), ("bitsandbytes", "reward"), ("SIGKILL", "dpo"), ("CPU allocator", "grpo")}


@slow
@pytest.mark.parametrize(
    ("form", "stage"), [pytest.param(*case, marks=[] if case in SHORT else faults) for case in ALL], ids=str
)
def test_a_stage_that_runs_out_of_memory_learns_the_same(
    finished_run: tuple[Path, RunRecord],
    recipe: Recipe,
    tmp_path: Path,
    form: str,
    stage: Stage,
    record_property: Record,
) -> None:
    finished, record = finished_run
    home = Path(shutil.copytree(finished, tmp_path / "home"))
    expected = checkpoints(finished)[stage]
    shutil.rmtree(home / "checkpoints" / expected.name)
    settings = Settings(home=home, checkpoint_every_steps=1, reserved_disk_bytes=0)
    execution = plan_execution(recipe, settings)
    execution = execution.shared_by(2) if stage in ("reward", "dpo") else execution
    inputs = {asked.stage: asked for asked in stage_inputs(recipe, preflight(recipe, settings).datasets, execution)}
    (accuracy,) = [judged.preference_accuracy for judged in record.evaluations if judged.checkpoint.stage == "reward"]
    inputs["grpo"] = inputs["grpo"].model_copy(update={"reward_accuracy": accuracy})
    made = starving_flow(inputs[stage], execution, form)
    attempts = read_manifest(made.path).attempts
    failed = ["killed", "killed"] if form == "SIGKILL" else ["out_of_memory"]
    assert [attempt.outcome for attempt in attempts] == [*failed, "completed"]
    assert [attempt.per_device_train_batch_size for attempt in attempts] == [8] * len(failed) + [4]
    assert attempts[-1].resumed_from_step == 1
    difference = relative_difference(made.path, expected)
    assert difference <= 1e-5
    record_property("fault", (f"out of memory: {form}", f"{stage}, step 2", f"differs by {difference:.0e}", 0))


@pytest.fixture(scope="module")
def hungry_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Stages whose whole batch takes some hundred megabytes more than a few rows do."""
    folder = tmp_path_factory.mktemp("hungry")
    filler = "and so on " * 20
    train = [f"{filler}{a} + {b}" for a in range(1, 9) for b in range(1, 9)]
    heldout = [f"{filler}{a} + {a}" for a in range(20, 28)]

    def pairs(prompts: list[str]) -> list[dict[str, Any]]:
        return [{"prompt": p, "chosen": "7", "rejected": "seven or so"} for p in prompts]

    write_rows(folder / "sft.jsonl", [{"prompt": p, "completion": "7"} for p in train])
    write_rows(folder / "preferences.jsonl", pairs(train))
    write_rows(folder / "prompts.jsonl", [{"prompt": p, "answer": 7} for p in train])
    write_rows(folder / "heldout.jsonl", [{"prompt": p, "answer": 7} for p in heldout])
    write_rows(folder / "heldout_preferences.jsonl", pairs(heldout))
    model = build_tiny_model(folder / "model", shape={"hidden_size": 256})
    longer: dict[str, Any] = {"batch_size": 32, "max_length": 320, "learning_rate": 1e-3, "max_steps": 2}
    grpo = {"batch_size": 32, "max_completion_length": 16, "rewards": [{"kind": "exact_answer"}]}
    asked = tiny_recipe(
        model, folder, sft=longer | {"max_steps": 4}, reward=longer | {"max_steps": 4}, dpo=longer, grpo=grpo
    )
    return Recipe.model_validate(asked)


def manifests_by_stage(home: Path) -> dict[str, Manifest]:
    return {stage: read_manifest(path) for stage, path in checkpoints(home).items()}


@pytest.fixture(scope="module")
def plenty(prefect_api: None, hungry_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact root of a run with all the memory that it wants."""
    home = tmp_path_factory.mktemp("plenty") / "home"
    assert run_align(hungry_recipe, home).record.state == "completed"
    return home


@pytest.fixture(scope="module")
def frugal(prefect_api: None, hungry_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact root of a run with two rows at a time."""
    home = tmp_path_factory.mktemp("frugal") / "home"
    assert run_align(hungry_recipe, home, {"ALIGN_PER_DEVICE_TRAIN_BATCH_SIZE": "2"}).record.state == "completed"
    return home


@slow
@faults
@pytest.mark.parametrize("stage", STAGES)
def test_a_real_limit_is_kept_by_smaller_micro_batches(
    plenty: Path, frugal: Path, hungry_recipe: Recipe, tmp_path: Path, stage: str, record_property: Record
) -> None:
    most, least = (manifests_by_stage(home)[stage].metrics["peak_memory_bytes"] for home in (plenty, frugal))
    assert most - least > 100e6
    home = Path(shutil.copytree(plenty, tmp_path / "home"))
    shutil.rmtree(checkpoints(home)[stage])
    limit = str(int((most + least) / 2))
    assert run_align(hungry_recipe, home, {"ALIGN_MEMORY_LIMIT_BYTES": limit}).record.state == "completed"
    attempts = manifests_by_stage(home)[stage].attempts
    assert [attempt.outcome for attempt in attempts[:-1]] == ["out_of_memory"] * (len(attempts) - 1)
    assert attempts[0].per_device_train_batch_size == 32
    assert attempts[-1].per_device_train_batch_size < 32
    assert attempts[0].peak_memory_bytes > 0
    sizes = "/".join(str(attempt.per_device_train_batch_size) for attempt in attempts)
    outcome = "completes"
    if stage != "grpo":  # whose generation may have been split, too
        difference = relative_difference(checkpoints(home)[stage], checkpoints(plenty)[stage])
        assert difference <= 1e-5
        outcome = f"differs by {difference:.0e}"
    record_property("fault", (f"memory limit, {sizes} rows", stage, outcome, 0))


@slow
@faults
def test_out_of_memory_after_a_crash_after_out_of_memory(
    plenty: Path,
    frugal: Path,
    hungry_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    most, least = (manifests_by_stage(home)["sft"].metrics["peak_memory_bytes"] for home in (plenty, frugal))
    scene = Scene(plenty, hungry_recipe, tmp_path / "home").without("sft")
    monkeypatch.setenv("ALIGN_MEMORY_LIMIT_BYTES", str(int(least + 0.95 * (most - least))))
    end = scene.strike(Strike("sft", "training", 3, "both"))
    assert end.returncode == -signal.SIGKILL, end.said
    tighter = {"ALIGN_MEMORY_LIMIT_BYTES": str(int(least + 0.4 * (most - least)))}
    assert run_align(hungry_recipe, scene.home, SETTINGS | tighter).record.state == "completed"
    attempts = manifests_by_stage(scene.home)["sft"].attempts
    outcomes = [attempt.outcome for attempt in attempts]
    assert outcomes[0] == "out_of_memory"
    died = outcomes.index("died")
    assert "out_of_memory" in outcomes[died:]
    assert outcomes[-1] == "completed"
    sizes = [attempt.per_device_train_batch_size for attempt in attempts]
    assert sizes[: died + 1] == sorted(sizes[: died + 1], reverse=True)
    assert sizes[died + 1] == sizes[died] > sizes[-1]
    assert attempts[-1].resumed_from_step == 2
    difference = relative_difference(checkpoints(scene.home)["sft"], checkpoints(plenty)["sft"])
    assert difference <= 1e-5
    moment = f"sft, {'/'.join(map(str, sizes))} rows"
    record_property("fault", ("out of memory, crash, again", moment, f"differs by {difference:.0e}", 1))


def test_errors_of_ours_are_recognised() -> None:
    assert is_out_of_memory(OutOfMemory("the training process was killed"))
