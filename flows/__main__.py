"""The `align` command. Exit code 0: done; 1: the run failed; 2: the input is wrong; 130: interrupted.

Every child process imports this module again, so heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flows.reading import chat, lineage, print_json, runs, verify
from models.errors import AlignError, InputError, StageError

if TYPE_CHECKING:
    from models.recipe import Recipe
    from models.run import RunRecord
    from tasks.forecast import StageForecast
    from tasks.memory_forecast import MemoryForecast
    from tasks.preflight import Preflight

PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start on a new machine sets up a database and compiles every module.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # this command tells of errors itself, once
    "PREFECT_CLIENT_MAX_RETRIES": "4",  # half a minute for each call: time enough for a server to restart
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of the fork server's own locks, when a run is cut short
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    from flows.arguments import parse_arguments

    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        return _COMMANDS[arguments.command](arguments)
    except InputError as error:
        return _fail(error, 2)
    except AlignError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("align: interrupted", file=sys.stderr)
        return 130


def _fail(error: AlignError, code: int) -> int:
    print("align:", str(error).replace("\n", "\n       "), file=sys.stderr)
    return code


def _run(arguments: Namespace) -> int:
    recipe = _recipe(arguments)
    _preflight(recipe)
    return _align(recipe, Path(arguments.recipe).stem or "recipe", force=tuple(arguments.force))


def _resume(arguments: Namespace) -> int:
    from flows.terminal import make_console, print_forecast
    from settings.settings import load_settings
    from tasks.run_record import unfinished_run

    settings = load_settings()
    run = unfinished_run(settings.home, arguments.run)
    print(f"resuming run {run.id}")
    try:
        found = _preflight(run.recipe)
    except InputError as error:
        remedy = "put that right, or `align run` the recipe as it is now: what is finished is taken"
        raise InputError(f"run {run.id} cannot go on as it was begun; {remedy}\n{error}") from None
    print_forecast(_forecast(run.recipe, found, run), make_console())
    return _align(run.recipe, run.recipe_name, resume=run.id)


def _align(recipe: "Recipe", name: str, **options: Any) -> int:
    """Run the flow with Prefect as this command wants it, and show how it goes."""
    for variable, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    from tasks.child import warm_up

    warm_up()
    import httpx

    from flows.terminal import make_console, print_summary, showing_progress

    console = make_console()
    console.print("recipe, data and machine are checked; starting Prefect")
    from flows.align import align
    from settings.settings import load_settings
    from tasks.files import explaining_a_full_disk

    try:
        with _leaving_on_signals(), showing_progress(console), explaining_a_full_disk(load_settings().home):
            record = align(recipe, name, **options)
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "reach API" not in str(error):
            raise
        _end_without_api(error)
    print_summary(record, console)
    return 0


def _end_without_api(error: Exception) -> NoReturn:
    """Say what became of the run and go; what Prefect still has to tell, it would try to hand over for minutes."""
    from flows.terminal import make_console, print_summary
    from settings.settings import load_settings
    from tasks.run_record import opened_run

    where = os.environ.get("PREFECT_API_URL", "its temporary server")
    lost = f"the Prefect API at {where} failed or cannot be reached ({type(error).__name__}: {error})"
    record = None
    with suppress(InputError):  # its record cannot be read
        record = opened_run(load_settings().home)
    if record and record.state == "completed":
        print_summary(record, make_console())
        print(f"align: {lost}; the run is complete, but Prefect does not know it", file=sys.stderr)
        _exit_at_once(0)
    _exit_at_once(_fail(StageError(f"{lost}; what was trained is kept: run the same again, or `align resume`"), 1))


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """While this is open, a signal ends the command: the run's stages save and stop, then `_leave` is called."""
    from tasks.stopping import SIGNALS, end_by

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    end_by(_leave)
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    try:
        yield
    finally:
        end_by(None)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    with suppress(OSError):  # the terminal may be gone
        print("\nalign: interrupted; run the same again, or `align resume`, to go on", file=sys.stderr, flush=True)
    _exit_at_once(128 + number)


def _exit_at_once(code: int) -> NoReturn:
    """End Prefect's temporary server and go: Ctrl-C has reached it, too, and Prefect would wait for its answer."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _check(arguments: Namespace) -> int:
    from flows.terminal import make_console, print_forecast, print_memory, print_preflight

    recipe = _recipe(arguments)
    result = _preflight(recipe)
    stages = _forecast(recipe, result)
    if arguments.json:
        memory = _forecast_memory(recipe, result, stages)
        parts = {"forecast": [stage.model_dump() for stage in stages], "memory": [each.model_dump() for each in memory]}
        print_json(result.model_dump(mode="json") | parts)
        return 0
    console = make_console()
    print_preflight(result, console)
    print_forecast(stages, console)
    with console.status("estimating memory"):
        memory = _forecast_memory(recipe, result, stages)
    if memory:
        print_memory(memory, console)
    return 0


def _forecast_memory(recipe: "Recipe", found: "Preflight", stages: "list[StageForecast]") -> "list[MemoryForecast]":
    """The memory of the stages that are still to be trained; a model that cannot be estimated stops nothing."""
    from settings.settings import load_settings
    from tasks.execution import plan_execution
    from tasks.memory_forecast import forecast_memory

    try:
        return forecast_memory(recipe, found.datasets, stages, plan_execution(recipe, load_settings()))
    except (AlignError, OSError) as error:
        print(f"align: memory is not estimated: {str(error).splitlines()[0]}", file=sys.stderr)
        return []


def _forecast(recipe: "Recipe", found: "Preflight", run: "RunRecord | None" = None) -> list["StageForecast"]:
    """What a run of the recipe, or going on with a run, would do with each stage."""
    from settings.settings import load_settings
    from tasks.execution import plan_execution
    from tasks.forecast import forecast

    execution = plan_execution(recipe, load_settings())
    return forecast(recipe, found.datasets, execution.of_run(run) if run else execution)


def _recipe(arguments: Namespace) -> "Recipe":
    from settings.recipes import build_recipe

    return build_recipe(arguments.recipe, arguments.flags.values(arguments))


def _preflight(recipe: "Recipe") -> "Preflight":
    from settings.settings import load_settings
    from tasks.preflight import preflight

    return preflight(recipe, load_settings())


def _forget(arguments: Namespace) -> int:
    from settings.settings import load_settings
    from tasks.fits import forget

    print(f"{forget(load_settings().home)} notes of what fitted are forgotten")
    return 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "run": _run,
    "check": _check,
    "resume": _resume,
    "runs": runs,
    "lineage": lineage,
    "verify": verify,
    "chat": chat,
    "forget": _forget,
}

if __name__ == "__main__":
    sys.exit(main())
