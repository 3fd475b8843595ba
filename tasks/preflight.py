"""Everything that can be found wrong before a model loads: in the recipe's data, its base model, and on this machine.

Nothing is left written unless it is asked to wait for a run, and torch is not imported. All problems are reported at
once, one a line.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from models.artifacts import Precision, Stage
from models.contract import Contract
from models.errors import InputError
from models.fingerprint import ID_LENGTH
from models.recipe import GRPO, Recipe, Training
from models.stages import TrainingInput
from models.trl_options import SOLVED_BY_TRL
from settings.machine import Machine, inspect_machine, resolve_precision
from settings.settings import Settings
from tasks.base_model_check import BaseModelFacts, check_base_model
from tasks.data.checking import DatasetCheck, Table, noting, read_tables, training_sections
from tasks.data.leakage import check_leakage
from tasks.data.preparations import Preparations, leaving_nothing
from tasks.data.preparing import Manner
from tasks.execution import plan_execution
from tasks.forecast import stage_inputs
from tasks.gate import check_condition, find_rivals
from tasks.launch import asked_launch, check_batch, launch_problems
from tasks.pruned import is_pruned
from tasks.queue import check_queue
from tasks.reward_functions import check_function
from tasks.scorer_check import find_scorer
from tasks.space import check_disk, disk_needed, nearest_existing
from tasks.store import ArtifactStore

_TRACKERS = {
    "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet_ml": "comet_ml", "trackio": "trackio",
    "swanlab": "swanlab", "clearml": "clearml", "neptune": "neptune", "dvclive": "dvclive", "codecarbon": "codecarbon",
}  # fmt: skip
"""Transformers' names of trackers, and the package that each needs."""


class StagePlan(Contract):
    """What a stage will do."""

    stage: Stage
    """The stage."""
    batch_size: int
    """Rows (GRPO: completions) per optimizer step."""
    steps: int
    """Optimizer steps; an estimate where rows are packed or dropped for their length."""


class Preflight(Contract):
    """What a run of the recipe will do on this machine."""

    machine: Machine
    """The device to train on."""
    precision: Precision
    """Number format of weights and activations."""
    datasets: tuple[DatasetCheck, ...]
    """Every dataset of the recipe, checked row by row."""
    stages: tuple[StagePlan, ...]
    """The stages in order."""
    disk: dict[str, int]
    """Estimate of what the run writes at most, in bytes, by kind."""
    needs: tuple[str, ...] = ()
    """Names of the folders that the run takes or makes, evaluations left out."""
    notes: tuple[str, ...] = ()
    """Remarks that do not stop the run."""


def preflight(
    recipe: Recipe, settings: Settings, *, keep: bool = False, on_rows: Callable[[int], None] = lambda rows: None
) -> Preflight:
    """Check a recipe against its data, its base model and this machine.

    Args:
        recipe: What would be trained.
        settings: Settings as read.
        keep: Whether the rows that had to be read for it wait for a run, unless something is wrong.
        on_rows: Told how many rows of a dataset were read.

    Raises:
        InputError: something cannot work; the message has one line per problem found.
    """
    with leaving_nothing(settings.home, Manner(on_progress=on_rows), keep=keep) as preparations:
        return _check(recipe, settings, preparations)


def _check(recipe: Recipe, settings: Settings, preparations: Preparations) -> Preflight:
    problems: list[str] = []
    machine, precision, model = None, None, BaseModelFacts(parameters=None, context_tokens=None)
    with noting(problems):
        machine = inspect_machine(settings)
        precision = resolve_precision(machine, recipe.precision)
    with noting(problems):
        _check_home(settings.home)
    with noting(problems):
        check_queue(settings.queue)
    _check_libraries(recipe, settings, problems)
    if machine:
        problems += launch_problems(settings, machine, recipe)
    if recipe.quantization and machine and machine.device == "mps":
        problems.append("quantization: 4-bit weights need a CPU or CUDA; remove it, or set ALIGN_DEVICE=cpu")
    with noting(problems):
        model = check_base_model(recipe.base_model)
    for reward in recipe.grpo.rewards if recipe.grpo else ():
        with noting(problems):
            if reward.function:
                check_function(reward.function)
            if reward.model and precision:
                find_scorer(reward, ArtifactStore(settings.home), precision)
    tables = read_tables(recipe, problems, preparations)
    leaks = check_leakage(tables, recipe.data_rules, problems)
    _check_lengths(recipe, model, problems)
    stages = _plan_stages(recipe, tables, asked_launch(settings).world_size, problems)
    if problems or machine is None or precision is None:
        raise InputError("\n".join(problems))
    checks = [table.check for table in tables.values()]
    inputs = list(stage_inputs(recipe, checks, plan_execution(recipe, settings)))
    disk = disk_needed(recipe, model.parameters or 0, precision, settings, _missing(inputs, settings))
    disk["snapshots"] = sum({check.fingerprint: check.size_bytes for check in checks}.values())
    check_disk(settings, disk)
    return Preflight(
        machine=machine,
        precision=precision,
        datasets=tuple(table.check for table in tables.values()),
        stages=tuple(stages),
        disk=disk,
        needs=_needs(inputs, checks),
        notes=(*_notes(recipe, machine, precision, tables), *leaks),
    )


def _check_home(home: Path) -> None:
    """Refuse an artifact root that cannot be made or written to, without making it."""
    nearest = nearest_existing(home)
    if not nearest.is_dir():
        raise InputError(f"ALIGN_HOME {home}: '{nearest}' is a file, not a folder; set ALIGN_HOME to another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"ALIGN_HOME {home}: '{nearest}' is not writable for you; set ALIGN_HOME to another place")


def _check_libraries(recipe: Recipe, settings: Settings, problems: list[str]) -> None:
    """Refuse trackers and verifiers whose packages are not installed."""
    for tracker in settings.report_to:
        if tracker not in _TRACKERS:
            near = get_close_matches(tracker, _TRACKERS, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"known trackers: {', '.join(_TRACKERS)}"
            problems.append(f"ALIGN_REPORT_TO: unknown tracker '{tracker}'; {remedy}")
        elif not importlib.util.find_spec(_TRACKERS[tracker]):
            problems.append(f"ALIGN_REPORT_TO: '{tracker}' is not installed; run `pip install {_TRACKERS[tracker]}`")
    _check_measuring(recipe, settings, problems)
    rewards = recipe.grpo.rewards if recipe.grpo else ()
    needed = {recipe.evaluation.verifier.kind, *(reward.kind for reward in rewards)}
    needed |= {"math_verify" for reward in rewards if reward.trl in SOLVED_BY_TRL}
    needed |= {one.verifier.kind for one in recipe.evaluation.sets if one.verifier}
    if "math_verify" in needed and not importlib.util.find_spec("math_verify"):
        problems.append("math_verify is not installed; run `pip install math-verify`, or use `exact_answer`")


def _check_measuring(recipe: Recipe, settings: Settings, problems: list[str]) -> None:
    """Refuse a judge or benchmarks that cannot be reached or are not installed, and a gate that nothing can open."""
    asked = {"judge": ("openai", recipe.evaluation.judge), "harness": ("lm_eval", recipe.evaluation.harness)}
    for extra, (package, section) in asked.items():
        if section and not importlib.util.find_spec(package):
            problems.append(f"evaluation.{extra}: not installed; run `pip install 'alignment-pipeline[{extra}]'`")
    harness = recipe.evaluation.harness
    if harness and harness.include_path and not Path(harness.include_path).is_dir():
        problems.append(
            f"evaluation.harness.include_path: {harness.include_path} is no folder; name one with task files"
        )
    if recipe.evaluation.judge and not settings.judge_url:
        problems.append("evaluation.judge: no server; set ALIGN_JUDGE_URL, such as http://localhost:8000/v1")
    if recipe.gate:
        for condition in recipe.gate.conditions:
            with noting(problems):
                check_condition(condition, recipe)
        with noting(problems):
            find_rivals(recipe, ArtifactStore(settings.home))


def _check_lengths(recipe: Recipe, model: BaseModelFacts, problems: list[str]) -> None:
    """Refuse lengths above the model's context."""
    if model.context_tokens is None:
        return
    lengths = {"evaluation.max_new_tokens": recipe.evaluation.max_new_tokens}
    for stage, section in training_sections(recipe).items():
        for key in ("max_length", "max_completion_length"):
            if hasattr(section, key):
                lengths[f"{stage}.{key}"] = getattr(section, key)
    problems += [
        f"{place}: {tokens} tokens are more than the {model.context_tokens} of the base model's context; lower it"
        for place, tokens in lengths.items()
        if tokens > model.context_tokens
    ]


def _plan_stages(recipe: Recipe, tables: dict[str, Table], world_size: int, problems: list[str]) -> list[StagePlan]:
    plans = []
    for stage, section in training_sections(recipe).items():
        table = tables.get(f"{stage}.dataset")
        if table:
            with noting(problems):
                check_batch(stage, section.batch_size, world_size)
                steps = _steps(stage, section, table.check)
                plans.append(StagePlan(stage=stage, batch_size=section.batch_size, steps=steps))
    return plans


def _steps(stage: Stage, section: Training, data: DatasetCheck) -> int:
    """Optimizer steps of a stage, as its trainer counts them."""
    group = section.num_generations if isinstance(section, GRPO) else 1
    rows_per_step = section.batch_size // group
    if rows_per_step > data.rows:
        unit = "completions" if group > 1 else "rows"
        raise InputError(
            f"{stage}.batch_size: {section.batch_size} {unit} a step need {rows_per_step} rows, but {data.path} has "
            f"{data.rows}; use batch_size={data.rows * group} or less, or add rows"
        )
    if section.max_steps:
        return section.max_steps
    if isinstance(section, GRPO):  # an incomplete last batch of prompts is left out
        return math.ceil(section.num_train_epochs * (data.rows // rows_per_step) * section.num_iterations)
    return math.ceil(section.num_train_epochs * math.ceil(data.rows / rows_per_step))


def _missing(inputs: list[TrainingInput], settings: Settings) -> set[Stage]:
    """The base model and the stages that are not there yet."""
    store = ArtifactStore(settings.home)
    places: dict[Stage, Path] = {"base": inputs[0].policy.path}
    places |= {stage.stage: store.folder("checkpoint", stage.name) for stage in inputs}
    return {stage for stage, path in places.items() if not path.exists() or is_pruned(path)}


def _needs(inputs: list[TrainingInput], checks: list[DatasetCheck]) -> tuple[str, ...]:
    parents = [parent.path.name for stage in inputs for parent in stage.parents().values()]
    heldout = [check.fingerprint[:ID_LENGTH] for check in checks]
    return tuple(dict.fromkeys([*parents, *heldout, *(stage.name for stage in inputs)]))


def _notes(recipe: Recipe, machine: Machine, precision: Precision, tables: dict[str, Table]) -> Iterator[str]:
    if recipe.base_model.source == "hub":
        yield f"{recipe.base_model.name} is fetched from the hub when the run starts; its size is not counted here"
    if precision == "bf16" and not machine.native_bf16:
        yield f"{machine.name} does not compute bf16 natively; fp32 may be faster"
    if recipe.sft.packing:
        yield "sft: rows are packed, so there will be fewer steps than estimated"
    for reward in recipe.grpo.other_reward_models if recipe.grpo and not recipe.evaluation.preferences else ():
        yield f"grpo.rewards: {reward.label} is not judged before it is used, for want of evaluation.preferences"
    for table in tables.values():
        if table.check.duplicates:
            yield f"{table.check.place}: {table.check.duplicates} duplicate rows are left out"
        for remark in table.check.remarks:
            yield f"{table.check.place}: {remark}"
        if table.check.unpaired:
            yield f"{table.check.place}: {table.check.unpaired} rows are in no pair and are left out"
