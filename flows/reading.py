"""The commands that read the artifact root, `align runs` and `verify`, and what other commands share with them.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import InputError

if TYPE_CHECKING:
    from tasks.child_main import ChildOptions
    from tasks.restoring import Computing
    from tasks.store import ArtifactStore


def runs(arguments: Namespace) -> int:
    """List the runs, newest first."""
    from flows.terminal import make_console, print_runs
    from tasks.run_record import all_runs, standing

    home = open_store().home
    records, problems = all_runs(home)
    for problem in problems:
        print(f"align: {problem}", file=sys.stderr)
    if arguments.json:
        print_json([record.model_dump(mode="json") | {"state": standing(record, home)} for record in records])
    elif not (records or problems):
        print(f"no run in {home}; `align run RECIPE` starts one, ALIGN_HOME names another artifact root")
    else:
        print_runs([(record, standing(record, home)) for record in records], make_console())
    return 0


def verify(arguments: Namespace) -> int:
    """Read artifacts or an exported folder again and name every damaged file; 1 where there is one."""
    from flows.publishing import is_export, verify_export
    from tasks.finding import resolve
    from tasks.lineage import all_folders, with_ancestors
    from tasks.pruned import read_pruned
    from tasks.store import damage

    wanted = arguments.checkpoint
    if wanted and is_export(wanted):
        return verify_export(arguments)
    if arguments.key:
        raise InputError(f"--key: {wanted or 'the artifact root'} is no exported folder; name one, or leave --key out")
    store = open_store()
    folders = with_ancestors(store, resolve(store, wanted)[0]) if wanted else all_folders(store)
    if wanted and store.remote:
        for path in filter(store.remote.has, folders):
            make_whole(store, path)
    if not folders:
        raise InputError(f"there is nothing to verify in {store.home}; is ALIGN_HOME right?")
    found = {str(folder): damage(folder) for folder in _tracked(folders)}
    pruned = {str(folder): marker for folder in folders if not found[str(folder)] and (marker := read_pruned(folder))}
    if arguments.json:
        marked = {folder: marker.model_dump() for folder, marker in pruned.items()}
        damaged = {folder: lines for folder, lines in found.items() if lines}
        print_json({"verified": len(found), "damaged": damaged, "pruned": marked})
    else:
        for folder, lines in found.items():
            print("".join(f"{line}\n" for line in lines), end="")
            if folder in pruned:
                marker = pruned[folder]
                print(f"{folder}: pruned on {marker.when[:10]}, {len(marker.files)} files: {marker.why}")
        print(f"{len(found)} artifacts read, {sum(map(bool, found.values()))} of them damaged or missing")
    return int(any(found.values()))


def _tracked(folders: "list[Path]") -> "Iterable[Path]":
    """The folders one after the other, with a bar where somebody looks on."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(folders, "reading", console=console, transient=True, disable=not console.is_terminal)


def make_whole(store: "ArtifactStore", path: Path) -> None:
    """Rebuild the weights of a pruned checkpoint, where that is what it is, and say so; they stay while this runs.

    Raises:
        InputError: that is not possible; the message says what to run instead.
        StageError: it failed.
    """
    from tasks.restoring import restore

    restore(store, path, *computing(), lambda doing: print(f"align: {doing}", file=sys.stderr))


def computing() -> tuple[str, "Computing"]:
    """How a command says who it is where others wait for it, and what its child process computes with."""
    from contextlib import nullcontext

    return f"align (process {os.getpid()})", lambda: nullcontext(child_options())


def child_options() -> "ChildOptions":
    """All threads of the machine, or as many as set, and the memory limit where there is one."""
    from settings.machine import inspect_machine
    from settings.settings import load_settings
    from tasks.child_main import ChildOptions

    settings = load_settings()
    threads = settings.threads or inspect_machine(settings).cores
    return ChildOptions(threads=threads, memory_limit_bytes=settings.memory_limit_bytes)


def open_store() -> "ArtifactStore":
    """The artifact root that the settings name.

    Raises:
        InputError: it is a file, or credentials for its remote are missing or wrong.
    """
    from settings.settings import load_settings
    from tasks.remote.opening import learn, open_store

    settings = load_settings()
    if settings.home.exists() and not settings.home.is_dir():
        raise InputError(f"ALIGN_HOME {settings.home} is a file, not a folder; set it to an artifact root")
    store = open_store(settings)
    learn(store, lambda said: print(f"align: {said}", file=sys.stderr))
    return store


def print_json(value: Sequence[Any] | dict[str, Any]) -> None:
    """Print data as JSON that people can read, too."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
