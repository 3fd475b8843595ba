"""What a manifest says of where and with what something was made. No paths, no user names, no environment."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.execution import Execution, library_versions


def provenance(execution: Execution) -> dict[str, Any]:
    """The manifest's fields on run, machine, library versions and code."""
    machine = execution.machine
    return {
        "machine": {
            "device": machine.device,
            "name": machine.name,
            "cores": machine.cores,
            "threads": execution.threads,
            "memory_bytes": machine.memory_bytes,
            "precision": execution.precision,
        },
        "versions": library_versions(),
        "code": _code(),
        "run": execution.run,
    }


def version_changes(recorded: dict[str, str]) -> list[str]:
    """Libraries whose version differs from the recorded one, as `trl 1.15.0 -> 1.16.0`."""
    now = library_versions()
    return [f"{name} {was} -> {now[name]}" for name, was in recorded.items() if name in now and now[name] != was]


@cache
def _code() -> dict[str, str]:
    """This pipeline's version and, in a checkout, its commit and whether files differ from it."""
    try:
        found = {"alignment-pipeline": version("alignment-pipeline")}
    except PackageNotFoundError:
        found = {}
    commit = _git("rev-parse", "HEAD")
    return found | ({"commit": commit, "changed": str(bool(_git("status", "--porcelain"))).lower()} if commit else {})


def _git(*arguments: str) -> str:
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip()
