"""The `align` command. Exit code 0: done; 1: the run failed; 2: the input is wrong; 130: interrupted.

Every child process imports this module again, so heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import AlignError, DamagedArtifact, InputError

if TYPE_CHECKING:
    from models.recipe import Recipe
    from models.run import RunRecord
    from tasks.preflight import Preflight
    from tasks.store import ArtifactStore

PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start on a new machine sets up a database and compiles every module.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # this command tells of errors itself, once
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
    except KeyboardInterrupt:
        print("align: interrupted", file=sys.stderr)
        return 130


def _fail(error: AlignError, code: int) -> int:
    print("align:", str(error).replace("\n", "\n       "), file=sys.stderr)
    return code


def _run(arguments: Namespace) -> int:
    recipe = _recipe(arguments)
    _preflight(recipe)
    for variable, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    from tasks.child import warm_up

    warm_up()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from rich.console import Console

    console = Console()
    console.print("recipe, data and machine are checked; starting Prefect")
    from flows.align import align
    from flows.terminal import print_summary, showing_progress

    with showing_progress(console):
        record = align(recipe, Path(arguments.recipe).stem or "recipe")
    print_summary(record, console)
    return 0


def _leave(number: int, frame: object) -> None:
    """End Prefect's temporary server and go: Ctrl-C has reached it, too, and Prefect would wait for its answer."""
    import psutil

    print("\nalign: interrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(128 + number)


def _check(arguments: Namespace) -> int:
    from rich.console import Console

    result = _preflight(_recipe(arguments))
    if arguments.json:
        print(result.model_dump_json(indent=2))
    else:
        from flows.terminal import print_preflight

        print_preflight(result, Console())
    return 0


def _recipe(arguments: Namespace) -> "Recipe":
    from settings.recipes import build_recipe

    return build_recipe(arguments.recipe, arguments.flags.values(arguments))


def _preflight(recipe: "Recipe") -> "Preflight":
    from settings.settings import load_settings
    from tasks.preflight import preflight

    return preflight(recipe, load_settings())


def _runs(arguments: Namespace) -> int:
    from rich.console import Console

    records = sorted(_read_runs(_store().home), key=lambda record: record.started, reverse=True)
    if arguments.json:
        _print_json([record.model_dump(mode="json") for record in records])
    else:
        from flows.terminal import print_runs

        print_runs(records, Console())
    return 0


def _read_runs(home: Path) -> list["RunRecord"]:
    """The records of all runs; unreadable ones are named on stderr and left out."""
    from pydantic import ValidationError

    from models.run import RunRecord

    records = []
    for path in home.glob("runs/*/run.json"):
        try:
            records.append(RunRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            print(f"align: {path}: not a readable run record ({type(error).__name__})", file=sys.stderr)
    return records


def _lineage(arguments: Namespace) -> int:
    from rich.console import Console

    from tasks.lineage import trace

    store = _store()
    path, _ = store.resolve(arguments.checkpoint)
    node = trace(store, path)
    if arguments.json:
        print(node.model_dump_json(indent=2))
    else:
        from flows.terminal import print_lineage

        print_lineage(node, Console())
    return 0


def _verify(arguments: Namespace) -> int:
    from tasks.lineage import all_folders, with_ancestors
    from tasks.store import damage

    store = _store()
    wanted = arguments.checkpoint
    folders = with_ancestors(store, *store.resolve(wanted)) if wanted else all_folders(store)
    found = {str(folder): damage(folder) for folder in folders}
    if arguments.json:
        _print_json({"verified": len(found), "damaged": {folder: lines for folder, lines in found.items() if lines}})
    else:
        for lines in found.values():
            print("".join(f"{line}\n" for line in lines), end="")
        print(f"{len(found)} artifacts verified, {sum(map(bool, found.values()))} damaged")
    return int(any(found.values()))


def _chat(arguments: Namespace) -> int:
    from tasks.store import damage

    store = _store()
    path, manifest = store.resolve(arguments.checkpoint)
    if damaged := damage(path):
        raise DamagedArtifact(f"{damaged[0]}; run its recipe again to make it anew")
    if manifest.identity.get("stage") == "reward":
        raise InputError(f"{path.name} is a reward model, which scores texts and writes none; choose another stage")
    reply = _speaker(path, manifest.origin.get("system_prompt"), arguments)
    if arguments.prompt is not None:
        print(reply(arguments.prompt))
    else:
        _converse(reply)
    return 0


def _speaker(path: Path, system_prompt: str | None, arguments: Namespace) -> Callable[[str], str]:
    """Load a model; the function returned goes on with one conversation."""
    from settings.machine import inspect_machine
    from settings.settings import load_settings
    from tasks.core.generation import chat_generate, load_chat

    chat = load_chat(path, device=inspect_machine(load_settings()).device)
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []

    def reply(text: str) -> str:
        messages.append({"role": "user", "content": text})
        answer = chat_generate(
            chat, messages, max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature
        )
        messages.append({"role": "assistant", "content": answer})
        return answer

    return reply


def _converse(reply: Callable[[str], str]) -> None:
    """Answer line after line until the input ends."""
    print("Type a message; an empty line or Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        print(reply(text))


def _store() -> "ArtifactStore":
    from settings.settings import load_settings
    from tasks.store import ArtifactStore

    return ArtifactStore(load_settings().home)


def _print_json(value: Sequence[Any] | dict[str, Any]) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "run": _run,
    "check": _check,
    "runs": _runs,
    "lineage": _lineage,
    "verify": _verify,
    "chat": _chat,
}

if __name__ == "__main__":
    sys.exit(main())
