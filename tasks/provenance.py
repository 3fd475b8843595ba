"""What a manifest says of where and with what something was made. No paths, no user names, no environment."""

from pathlib import Path
from typing import Any, TypeVar

from prefect.runtime import flow_run, task_run

from models.contract import Contract
from models.measurement import Harness
from models.recipe import GRPO
from models.sources import BaseModelSource, RowSource
from tasks.code_version import code_version
from tasks.execution import Execution, library_versions

Shown = TypeVar("Shown", bound=Contract)


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
        "code": code_version(),
        "run": execution.run,
        "prefect": {name: value for name, value in _prefect_ids().items() if value},
    }


def _prefect_ids() -> dict[str, str | None]:
    return {"flow_run": flow_run.id, "task_run": task_run.id}


def public_source(source: RowSource) -> dict[str, Any]:
    """A dataset's source as the recipe names it, local paths without the folders that say whose machine it was on."""
    return without_folders(source).model_dump(mode="json")


def _without_folders(path: str) -> str:
    """A local path, or several between commas, by the last part of each; a hub id as it is."""
    local = Path(path)
    if "," in path and not local.exists():
        return ", ".join(map(_without_folders, path.split(",")))
    return local.name if local.exists() or local.is_absolute() else path.strip()


def without_folders(shown: Shown) -> Shown:
    """A recipe, or a part of one, for readers elsewhere: local models and files by the last part of their path."""
    if isinstance(shown, RowSource) and shown.path:
        return shown.model_copy(update={"path": _without_folders(shown.path)})
    if isinstance(shown, BaseModelSource) and shown.source == "folder":
        return shown.model_copy(update={"name": Path(shown.name).name})
    if isinstance(shown, GRPO):
        shown = shown.model_copy(update={"rewards": tuple(reward.without_folders() for reward in shown.rewards)})
    if isinstance(shown, Harness) and shown.include_path:
        return shown.model_copy(update={"include_path": Path(shown.include_path).name})
    parts = {name: getattr(shown, name) for name in type(shown).model_fields}
    changes: dict[str, Any] = {
        name: without_folders(part) for name, part in parts.items() if isinstance(part, Contract)
    }
    changes |= {
        name: tuple(without_folders(each) for each in part)
        for name, part in parts.items()
        if isinstance(part, tuple) and part and all(isinstance(each, Contract) for each in part)
    }
    return shown.model_copy(update=changes)


def version_changes(recorded: dict[str, str]) -> list[str]:
    """Libraries whose version differs from the recorded one, as `trl 1.15.0 -> 1.16.0`."""
    now = library_versions()
    return [f"{name} {was} -> {now[name]}" for name, was in recorded.items() if name in now and now[name] != was]
