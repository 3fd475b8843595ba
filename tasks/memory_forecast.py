"""Whether each stage of a recipe will fit into this machine's memory, before a weight is loaded."""

import math
from collections.abc import Callable
from typing import Any, Literal

import psutil

from models.artifacts import Checkpoint
from models.contract import Contract
from models.errors import StageError
from models.fingerprint import fingerprint
from models.recipe import GRPO, Recipe, Training
from models.sources import BaseModelSource
from models.stages import BaseModelInput, TrainingInput
from settings.published_models import PUBLISHED
from tasks.base_model_check import locate
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import estimate, estimate_published
from tasks.core.plan import Footprint, StageShape
from tasks.data.checking import DatasetCheck, training_sections
from tasks.execution import Execution
from tasks.fits import recall
from tasks.forecast import StageForecast, stage_inputs
from tasks.ledger import plan_attempt, read_attempts
from tasks.pruned import is_pruned
from tasks.store import ArtifactStore

Verdict = Literal["fits", "tight", "won't fit"]

_TIGHT = 0.85
"""Share of the available memory from which on an estimate that is somewhat low would not fit any more."""
_CUDA_CONTEXT_BYTES = 600_000_000
_SIDE_BY_SIDE = {"reward", "dpo"}
"""Stages that train at the same time, see `flows.align`."""


class MemoryForecast(Contract):
    """What a stage needs and what there is."""

    footprint: Footprint
    """The estimate."""
    per_device_train_batch_size: int
    """Micro-batch that the stage starts with."""
    available_bytes: int
    """Memory that it may take; 0: unknown."""
    verdict: Verdict
    """`tight` from 85 % of what is available."""
    fitting_batch_size: int | None
    """Largest micro-batch that fits, where the planned one does not; none: not even one row does."""


def forecast_memory(
    recipe: Recipe, datasets: tuple[DatasetCheck, ...], stages: list[StageForecast], execution: Execution
) -> list[MemoryForecast]:
    """Estimate the memory of every stage that is still to be trained, in a child process.

    Args:
        recipe: What would be trained.
        datasets: Its datasets, as preflight has found them.
        stages: What a run would do with each stage.
        execution: The machine's part.

    Raises:
        StageError: the base model's configuration cannot be read or its architecture not be estimated.
    """
    waiting = {stage.name for stage in stages if stage.state not in ("cached", "rebuilds")}
    every = list(stage_inputs(recipe, datasets, execution))
    inputs = [stage for stage in every if stage.name in waiting]
    if not inputs:
        return []
    rows = {check.place: check.longest_rows for check in datasets}
    shapes = tuple(_shape(stage, rows[f"{stage.stage}.dataset"], execution) for stage in inputs)
    source, location = _base_model(recipe, every[0].policy)
    return _estimate(estimate, (source, location), shapes, execution)


def forecast_memory_offline(
    recipe: Recipe, datasets: tuple[DatasetCheck, ...], execution: Execution
) -> list[MemoryForecast]:
    """Estimate the memory of every stage without a hub, from published shapes of models.

    Rows that cannot be read or whose tokens cannot be counted are taken to be as long as the recipe lets them be, and
    GRPO's prompts as long as its completions.

    Raises:
        StageError: the base model is on the hub, and its shape is not known.
    """
    on_hub = recipe.base_model.source == "hub"
    if on_hub and recipe.base_model.name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise StageError(f"the shape of {recipe.base_model.name} is not known offline, only those of {known}")
    read = {check.place: check for check in datasets}
    places = [f"{stage}.dataset" for stage in training_sections(recipe)]
    promised = [read.get(place) or _unread(place) for place in places]
    shapes = []
    for stage in stage_inputs(recipe, promised, execution, offline=True):
        rows = read.get(f"{stage.stage}.dataset")
        shape = _shape(stage, rows.longest_rows if rows else (), execution)
        tokens = None if rows and not on_hub else _longest_allowed(stage.hyperparameters)
        shapes.append(shape.model_copy(update={"longest_tokens": tokens}))
    if on_hub:
        architecture = PUBLISHED[recipe.base_model.name].architecture
        return _estimate(estimate_published, (architecture,), tuple(shapes), execution)
    location, origin = locate(recipe.base_model)
    source = BaseModelInput(source=recipe.base_model, origin=origin, precision=execution.precision)
    return _estimate(estimate, (source, location), tuple(shapes), execution)


def _unread(place: str) -> DatasetCheck:
    """A dataset that nothing is known of."""
    nothing = {"path": "", "rows": 0, "read": 0, "duplicates": 0, "rows_sha256": "", "size_bytes": 0}
    return DatasetCheck.model_validate({"place": place, "fingerprint": fingerprint(place), **nothing})


def _longest_allowed(section: Training) -> int:
    if isinstance(section, GRPO):
        return 2 * section.max_completion_length
    return int(getattr(section, "max_length", 0))


def _estimate(
    function: Callable[..., list[Footprint]],
    model: tuple[Any, ...],
    shapes: tuple[StageShape, ...],
    execution: Execution,
) -> list[MemoryForecast]:
    """Estimate in a child process, and compare with what there is."""
    options = ChildOptions(threads=1)
    found = run_in_child(function, (*model, shapes), options, lambda report: None, lambda line: None)
    return [_compare(shape, footprint, found, execution) for shape, footprint in zip(shapes, found, strict=True)]


def _shape(stage: TrainingInput, longest_rows: tuple[dict[str, object], ...], execution: Execution) -> StageShape:
    workspace = ArtifactStore(execution.settings.home).partial("checkpoint", stage.name)
    execution = execution.of_training()
    plan = plan_attempt(stage, read_attempts(workspace), execution, recall(stage, execution))
    return StageShape(
        stage=stage.stage,
        hyperparameters=stage.hyperparameters,
        precision=stage.precision,
        quantization=stage.quantization,
        plan=plan,
        splits_generation=plan.device == "cuda" or execution.settings.memory_limit_bytes is not None,
        longest_rows=longest_rows,
    )


def _base_model(recipe: Recipe, converted: Checkpoint) -> tuple[BaseModelInput, str]:
    """The base model as converted, where it is there already, else at its source, which takes reading it."""
    if converted.path.exists() and not is_pruned(converted.path):
        folder = BaseModelSource(source="folder", name=str(converted.path))
        return BaseModelInput(source=folder, origin={}, precision=converted.precision), folder.name
    location, origin = locate(recipe.base_model)
    return BaseModelInput(source=recipe.base_model, origin=origin, precision=converted.precision), location


def _compare(
    shape: StageShape, footprint: Footprint, all_footprints: list[Footprint], execution: Execution
) -> MemoryForecast:
    on_devices = execution.machine.device == "cuda"
    shared = execution.parallel_stages > (execution.machine.accelerators if on_devices else 1)
    takers = 1 if on_devices else shape.plan.processes  # of one memory, for each stage
    pairs = [other for other in all_footprints if shared and {other.stage, footprint.stage} == _SIDE_BY_SIDE]
    beside = [takers * other.peak for other in pairs]
    available = _available(execution, sum(beside) + _taken_by_vllm(shape, execution))
    rows = shape.plan.per_device_train_batch_size
    verdict = _judge(footprint.peak, available)
    return MemoryForecast(
        footprint=footprint,
        per_device_train_batch_size=rows,
        available_bytes=available,
        verdict=verdict,
        fitting_batch_size=rows if verdict != "won't fit" else _fitting(shape, footprint, available),
    )


def _taken_by_vllm(shape: StageShape, execution: Execution) -> int:
    """What vLLM keeps on the devices that train, where it does not sleep meanwhile."""
    vllm = shape.plan.vllm
    beside = vllm is not None and vllm.mode == "colocate" and not vllm.sleep
    return int(execution.machine.memory_bytes * vllm.gpu_memory_utilization) if vllm and beside else 0


def _judge(peak: int, available: int) -> Verdict:
    if available and peak > available:
        return "won't fit"
    return "tight" if available and peak > _TIGHT * available else "fits"


def _fitting(shape: StageShape, footprint: Footprint, available: int) -> int | None:
    """The largest equal part of the batch that fits; between one row and the planned ones memory grows evenly."""
    plan = shape.plan
    planned, of_process = plan.per_device_train_batch_size, shape.hyperparameters.batch_size // plan.processes
    a_row = (footprint.peak - footprint.peak_of_one_row) / max(1, planned - 1)
    sizes = [size for size in range(planned - 1, 0, -1) if of_process % size == 0]
    return next((size for size in sizes if footprint.peak_of_one_row + (size - 1) * a_row <= available), None)


def _available(execution: Execution, taken_beside: int) -> int:
    """Bytes that a process of a stage may take of its accelerator, or of what is free of the host; 0: unknown."""
    machine, limit = execution.machine, execution.settings.memory_limit_bytes
    if machine.device == "cuda":
        return max(1, machine.memory_bytes - _CUDA_CONTEXT_BYTES - taken_beside) if machine.memory_bytes else 0
    free = min(machine.memory_bytes or math.inf, psutil.virtual_memory().available) - taken_beside
    return max(1, int(min(free / execution.settings.processes, limit or math.inf)))
