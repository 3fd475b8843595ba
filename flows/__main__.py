"""The `align` command. Exit code 0: done; 1: the run failed; 2: the input is wrong; 130: interrupted.

Every child process imports this module again, so heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.chatting import chat
from flows.data import data
from flows.joining import join
from flows.keeping import aliases, import_, promote, prune
from flows.lineage import diff, lineage
from flows.operating import doctor, down, up
from flows.publishing import export
from flows.queueing import queue
from flows.reading import print_json, runs, verify
from flows.session import begin_fork_server, fail, in_prefect, minding_ctrl_c
from models.errors import AlignError, InputError

if TYPE_CHECKING:
    from models.comparison import Comparison
    from models.recipe import Recipe
    from models.reproduction import Reproduction
    from models.retraining import Retraining
    from models.run import RunRecord
    from tasks.data.checking import DatasetCheck
    from tasks.forecast import StageForecast
    from tasks.memory_forecast import MemoryForecast
    from tasks.preflight import Preflight


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    from flows.arguments import parse_arguments

    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        return _COMMANDS[arguments.command](arguments)
    except InputError as error:
        return fail(error, 2)
    except AlignError as error:
        return fail(error, 1)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nalign: interrupted", file=sys.stderr)
        return 130


@minding_ctrl_c()
def _run(arguments: Namespace) -> int:
    recipe = _recipe(arguments)
    _check_before_run(recipe, keep=True)
    return _align(recipe, Path(arguments.recipe).stem or "recipe", force=tuple(arguments.force))


def _check_before_run(recipe: "Recipe", *, keep: bool = False) -> None:
    """Check all that can be before a run, while what it needs comes up."""
    print("checking recipe and data", flush=True)
    begin_fork_server()
    _preflight(recipe, keep=keep)


@minding_ctrl_c()
def _resume(arguments: Namespace) -> int:
    from flows.terminal import make_console, print_forecast
    from settings.settings import load_settings
    from tasks.run_record import unfinished_run

    settings = load_settings()
    run = unfinished_run(settings.home, arguments.run)
    print(f"resuming run {run.id}", flush=True)
    begin_fork_server()
    try:
        found = _preflight(run.recipe, keep=True)
    except InputError as error:
        remedy = "put that right, or `align run` the recipe as it is now: what is finished is taken"
        raise InputError(f"run {run.id} cannot go on as it was begun; {remedy}\n{error}") from None
    print_forecast(_forecast(run.recipe, found, run), make_console())
    return _align(run.recipe, run.recipe_name, resume=run.id)


def _align(recipe: "Recipe", name: str, **options: Any) -> int:
    """Run the pipeline and show its summary."""
    from flows.terminal import make_console, print_summary

    with in_prefect() as ready:
        from flows.align import align

        ready()
        record: RunRecord = align(recipe, name, **options)
    print_summary(record, make_console())
    return 0


@minding_ctrl_c()
def _retrain(arguments: Namespace) -> int:
    """Train and judge what has changed, and say what became of it."""
    from tasks.promoting import check_alias

    check_alias(arguments.alias)
    recipe = _recipe(arguments)
    _check_before_run(recipe)
    with in_prefect() as ready:
        from flows.retrain import retrain

        ready()
        name = Path(arguments.recipe).stem or "recipe"
        ended: Retraining = retrain(recipe, name, arguments.promotion, arguments.alias)
    print(ended.message)
    return 0


def _check(arguments: Namespace) -> int:
    from flows.data_tables import print_problems
    from flows.terminal import make_console, print_forecast, print_memory, print_preflight

    recipe = _recipe(arguments)
    result = _preflight(recipe, card=arguments.card, offline=arguments.offline)
    stages = _forecast(recipe, result) if result.named else []
    if arguments.json:
        parts = {
            "forecast": [stage.model_dump() for stage in stages],
            "memory": [each.model_dump() for each in _forecast_memory(recipe, result, stages) or ()],
        }
        print_json(result.model_dump(mode="json") | parts)
        return 0
    console = make_console()
    print_preflight(result, console)
    for dataset, places in _with_problems(result):
        console.print(f"{', '.join(places)}: {dataset.path}", markup=False, highlight=False)
        print_problems(dataset.problems, dataset.read, console)
    print_forecast(stages, console)
    with console.status("estimating memory"):
        memory = _forecast_memory(recipe, result, stages)
    if memory:
        print_memory(memory, console)
    if memory is not None and not result.unread and all(each.verdict != "won't fit" for each in memory):
        console.print("nothing speaks against a run", markup=False)
    return 0


def _with_problems(found: "Preflight") -> "list[tuple[DatasetCheck, list[str]]]":
    """The datasets that have any, each with all of the recipe's keys that use it alike."""
    alike: dict[str, tuple[DatasetCheck, list[str]]] = {}
    for each in found.datasets:
        if each.problems:
            alike.setdefault(each.model_dump_json(exclude={"place"}), (each, []))[1].append(each.place)
    return [*alike.values()]


def _forecast_memory(
    recipe: "Recipe", found: "Preflight", stages: "list[StageForecast]"
) -> "list[MemoryForecast] | None":
    """The memory of the stages that are still to be trained; `None`: it cannot be estimated, which stops nothing."""
    from settings.settings import load_settings
    from tasks.execution import plan_execution
    from tasks.memory_forecast import forecast_memory, forecast_memory_offline

    try:
        execution = plan_execution(recipe, load_settings(), found.machine)
        if not found.named:
            return forecast_memory_offline(recipe, found.datasets, execution)
        return forecast_memory(recipe, found.datasets, stages, execution)
    except (AlignError, OSError) as error:
        print(f"align: memory is not estimated: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def _forecast(recipe: "Recipe", found: "Preflight", run: "RunRecord | None" = None) -> list["StageForecast"]:
    """What a run of the recipe, or going on with a run, would do with each stage."""
    from settings.settings import load_settings
    from tasks.execution import plan_execution
    from tasks.forecast import forecast

    execution = plan_execution(recipe, load_settings(), found.machine)
    return forecast(recipe, found.datasets, execution.of_run(run) if run else execution)


def _recipe(arguments: Namespace) -> "Recipe":
    from settings.recipes import build_recipe

    return build_recipe(arguments.recipe, arguments.flags.values(arguments))


def _preflight(recipe: "Recipe", *, keep: bool = False, **what_if: Any) -> "Preflight":
    from settings.settings import load_settings
    from tasks.preflight import WhatIf, preflight
    from tasks.progress import sparingly

    tell = sparingly(lambda rows: print(f"align: {rows:,} rows read", file=sys.stderr))
    return preflight(recipe, load_settings(), WhatIf(**what_if), keep=keep, on_rows=tell)


@minding_ctrl_c()
def _compare(arguments: Namespace) -> int:
    """Hold two models against each other."""
    begin_fork_server()
    from flows.reading import open_store
    from flows.terminal import make_console, print_comparison
    from settings.recipes import build_recipe
    from tasks.contest import find_entrants

    recipe = build_recipe(arguments.recipe, {}) if arguments.recipe else None
    find_entrants(open_store(), (arguments.a, arguments.b), recipe)
    with in_prefect(quiet=arguments.json) as ready:
        from flows.compare import compare

        ready()
        found: tuple[Comparison, Path] = compare(arguments.a, arguments.b, recipe, arguments.html)
    comparison, page = found
    if arguments.json:
        print_json(comparison.model_dump(mode="json") | {"page": str(page)})
    else:
        print_comparison(comparison, page, make_console())
    return 0


@minding_ctrl_c()
def _reproduce(arguments: Namespace) -> int:
    """Train a checkpoint again and compare; 1 where the weights are others."""
    begin_fork_server()
    from flows.terminal import make_console, print_reproduction
    from settings.settings import load_settings
    from tasks.reproducing import check_reproduction

    check_reproduction(arguments.checkpoint, load_settings())
    with in_prefect(quiet=arguments.json) as ready:
        from flows.reproduce import reproduce

        ready()
        found: Reproduction = reproduce(arguments.checkpoint)
    if arguments.json:
        print_json(found.model_dump(mode="json") | {"same": found.same})
    else:
        print_reproduction(found, make_console())
    return 0 if found.same else 1


def _forget(arguments: Namespace) -> int:
    from settings.settings import load_settings
    from tasks.fits import forget

    print(f"{forget(load_settings().home)} notes of what fitted are forgotten")
    return 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "run": _run,
    "data": data,
    "retrain": _retrain,
    "check": _check,
    "resume": _resume,
    "runs": runs,
    "queue": queue,
    "join": join,
    "lineage": lineage,
    "diff": diff,
    "compare": _compare,
    "verify": verify,
    "chat": chat,
    "reproduce": _reproduce,
    "promote": promote,
    "aliases": aliases,
    "prune": prune,
    "import": import_,
    "export": export,
    "forget": _forget,
    "up": up,
    "down": down,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
