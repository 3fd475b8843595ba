"""Whether each stage of a recipe will fit into this machine's memory, before a weight is loaded."""

import math
from typing import Literal

import psutil

from models.artifacts import Checkpoint
from models.contract import Contract
from models.recipe import Recipe
from models.sources import BaseModelSource
from models.stages import BaseModelInput, TrainingInput
from tasks.base_model_check import locate
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import estimate
from tasks.core.plan import Footprint, StageShape
from tasks.data.checking import DatasetCheck
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
    options = ChildOptions(threads=1)
    found = run_in_child(estimate, (source, location, shapes), options, lambda report: None, lambda line: None)
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
    memories = execution.machine.accelerators if execution.machine.device == "cuda" else 1
    shared = execution.parallel_stages > memories
    beside = [other.peak for other in all_footprints if shared and {other.stage, footprint.stage} == _SIDE_BY_SIDE]
    available = _available(execution, sum(beside))
    rows = shape.plan.per_device_train_batch_size
    verdict = _judge(footprint.peak, available)
    return MemoryForecast(
        footprint=footprint,
        per_device_train_batch_size=rows,
        available_bytes=available,
        verdict=verdict,
        fitting_batch_size=rows if verdict != "won't fit" else _fitting(shape, footprint, available),
    )


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
