"""Everything that can be found wrong before a model loads: in the recipe's data, its base model, and on this machine.

Nothing is left written but what a remote tells of itself, unless it is asked to wait for a run, and torch is not
imported. All problems are reported at once, one a line.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from models.artifacts import Precision, Stage
from models.contract import Contract
from models.data_rules import Rule
from models.errors import InputError
from models.fingerprint import ID_LENGTH
from models.launch import Launch
from models.recipe import GRPO, Recipe, Training
from models.sources import BaseModelSource
from models.stages import TrainingInput
from settings.cards import find_card
from settings.machine import Machine, inspect_machine, resolve_precision
from settings.settings import Settings
from tasks.base_model_check import BaseModelFacts, check_base_model
from tasks.data.checking import DatasetCheck, Table, datasets_on_hub, noting, read_tables, training_sections
from tasks.data.leakage import check_leakage
from tasks.data.preparations import Preparations, leaving_nothing
from tasks.data.preparing import Manner
from tasks.execution import plan_execution
from tasks.forecast import stage_inputs
from tasks.launch import asked_launch, check_batch, launch_problems, uneven_steps
from tasks.library_check import check_libraries
from tasks.pruned import is_pruned
from tasks.queue import check_queue
from tasks.remote.opening import check_remote, open_store
from tasks.reward_functions import check_function
from tasks.scorer_check import find_scorer
from tasks.space import check_disk, disk_needed, nearest_existing
from tasks.vllm import check_vllm


class StagePlan(Contract):
    """What a stage will do."""

    stage: Stage
    """The stage."""
    batch_size: int
    """Rows (GRPO: completions) per optimizer step."""
    steps: int | None
    """Optimizer steps; an estimate where rows are packed or dropped for their length; none: the rows were not read."""


class WhatIf(Contract):
    """Circumstances to check a recipe for, where they are not those of this machine."""

    card: str = ""
    """An accelerator to plan for, by a name of `settings.cards`; empty: what this machine has."""
    offline: bool = False
    """Ask no hub: models and datasets there are described as far as is known, not read."""

    def machine(self, settings: Settings) -> Machine:
        """The machine to plan for.

        Raises:
            InputError: there is no such card, or the settings ask for a device that this machine does not have.
        """
        if not self.card:
            return inspect_machine(settings)
        return find_card(self.card, inspect_machine(settings.model_copy(update={"device": "cpu"})))


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
    unread: dict[str, str] = {}
    """Hub ids of the datasets that were not read, by their key in the recipe."""
    named: bool = True
    """Whether the names of the stages' checkpoints are known, so that they can be looked up."""
    needs: tuple[str, ...] = ()
    """Names of the folders that the run takes or makes, evaluations left out."""
    notes: tuple[str, ...] = ()
    """Remarks that do not stop the run."""


def preflight(
    recipe: Recipe,
    settings: Settings,
    what_if: WhatIf | None = None,
    *,
    keep: bool = False,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Preflight:
    """Check a recipe against its data, its base model and this machine.

    Args:
        recipe: What would be trained.
        settings: Settings as read.
        what_if: Circumstances to check for; default: those of this machine.
        keep: Whether the rows that had to be read for it wait for a run, unless something is wrong.
        on_rows: Told how many rows of a dataset were read.

    Raises:
        InputError: something cannot work; the message has one line per problem found.
    """
    with leaving_nothing(settings.home, Manner(on_progress=on_rows), keep=keep) as preparations:
        return _check(recipe, settings, what_if or WhatIf(), preparations)


def _check(recipe: Recipe, settings: Settings, what_if: WhatIf, preparations: Preparations) -> Preflight:
    problems: list[str] = []
    model = BaseModelFacts(parameters=None, context_tokens=None)
    machine, precision = _check_machine(recipe, settings, what_if, problems)
    with noting(problems):
        model = check_base_model(recipe.base_model, what_if.offline)
    scorers = _check_rewards(recipe, settings, precision, what_if.offline, problems)
    unread = datasets_on_hub(recipe) if what_if.offline else {}
    tables = read_tables(recipe, problems, preparations, what_if.offline)
    leaks = check_leakage(tables, recipe.data_rules, problems)
    _check_lengths(recipe, model, problems)
    launch = asked_launch(settings)
    stages = _plan_stages(recipe, tables, launch, problems)
    if problems or machine is None or precision is None:
        raise InputError("\n".join(problems))
    checks = [table.check for table in tables.values()]
    rows = {check.place.removesuffix(".dataset"): check.rows for check in checks}
    uneven = uneven_steps(training_sections(recipe), rows, launch.world)
    # Without its rows and the hub's commits a stage has no name yet, so nothing of it is known to be there.
    unasked = [model for model in (recipe.base_model, *scorers) if what_if.offline and model.source == "hub"]
    named = not (unread or unasked)
    inputs = list(stage_inputs(recipe, checks, plan_execution(recipe, settings, machine))) if named else []
    missing = _missing(inputs, settings) if named else {"base", *training_sections(recipe)}
    disk = disk_needed(recipe, model.parameters or 0, precision, settings, missing)
    disk["snapshots"] = sum({check.fingerprint: check.size_bytes for check in checks}.values())
    if not what_if.card:  # the disk is not here either
        check_disk(settings, disk)
    return Preflight(
        machine=machine,
        precision=precision,
        datasets=tuple(checks),
        stages=tuple(stages),
        disk=disk,
        unread=unread,
        named=named,
        needs=_needs(inputs, checks),
        notes=(*_offline_notes(recipe, unread, unasked), *_notes(recipe, machine, precision, tables), *leaks, *uneven),
    )


def _check_machine(
    recipe: Recipe, settings: Settings, what_if: WhatIf, problems: list[str]
) -> tuple[Machine | None, Precision | None]:
    """Check the machine and what is installed on it; gives the machine and its precision where they are known."""
    machine, precision = None, None
    with noting(problems):
        machine = what_if.machine(settings)
        precision = resolve_precision(machine, recipe.precision)
    with noting(problems):
        _check_home(settings.home)
    with noting(problems):
        check_remote(settings)
    with noting(problems):
        check_queue(settings.queue)
    check_libraries(recipe, settings, problems)
    if machine and not what_if.card:
        problems += launch_problems(settings, machine, recipe)
    if recipe.grpo and machine and not what_if.card:
        check_vllm(recipe, settings, machine, problems)
    if recipe.quantization and machine and machine.device == "mps":
        problems.append("quantization: 4-bit weights need a CPU or CUDA; remove it, or set ALIGN_DEVICE=cpu")
    return machine, precision


def _check_rewards(
    recipe: Recipe, settings: Settings, precision: Precision | None, offline: bool, problems: list[str]
) -> list[BaseModelSource]:
    """Look up what rewards name; returns where the reward models lie that the artifact root does not have."""
    sources = []
    for reward in recipe.grpo.rewards if recipe.grpo else ():
        with noting(problems):
            if reward.function:
                check_function(reward.function)
            if reward.model and precision:
                sources.append(find_scorer(reward, open_store(settings), precision, offline).source)
    return [source for source in sources if source]


def _check_home(home: Path) -> None:
    """Refuse an artifact root that cannot be made or written to, without making it."""
    nearest = nearest_existing(home)
    if not nearest.is_dir():
        raise InputError(f"ALIGN_HOME {home}: '{nearest}' is a file, not a folder; set ALIGN_HOME to another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"ALIGN_HOME {home}: '{nearest}' is not writable for you; set ALIGN_HOME to another place")


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


def _plan_stages(recipe: Recipe, tables: dict[str, Table], launch: Launch, problems: list[str]) -> list[StagePlan]:
    plans = []
    for stage, section in training_sections(recipe).items():
        table = tables.get(f"{stage}.dataset")
        with noting(problems):
            check_batch(stage, section.batch_size, launch)
            steps = _steps(stage, section, table.check) if table else section.max_steps
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
    store = open_store(settings)
    places: dict[Stage, Path] = {"base": inputs[0].policy.path}
    places |= {stage.stage: store.folder("checkpoint", stage.name) for stage in inputs}
    return {stage for stage, path in places.items() if not path.exists() or is_pruned(path)}


def _needs(inputs: list[TrainingInput], checks: list[DatasetCheck]) -> tuple[str, ...]:
    parents = [parent.path.name for stage in inputs for parent in stage.parents().values()]
    heldout = [check.fingerprint[:ID_LENGTH] for check in checks]
    return tuple(dict.fromkeys([*parents, *heldout, *(stage.name for stage in inputs)]))


def _offline_notes(recipe: Recipe, unread: dict[str, str], unasked: list[BaseModelSource]) -> Iterator[str]:
    """What is not known for want of the hub, of the datasets and of the models there."""
    if unread:
        yield f"{', '.join(dict.fromkeys(unread.values()))}: not read offline; rows, columns and steps are not checked"
    needy: tuple[Rule, ...] = ("special_tokens", "too_long")
    rules = [rule for rule in needy if recipe.data_rules.of(rule) != "keep"]
    if rules and recipe.base_model in unasked:
        yield f"data_rules: {' and '.join(rules)} left out, since the tokenizer is not read offline"
    for model in unasked:
        if model != recipe.base_model:
            yield f"grpo.rewards: {model.name} is not looked at offline"


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
