"""What came of training a checkpoint again: whether the weights are the same, and what was not as it was."""

from fnmatch import fnmatch
from pathlib import Path

from models.artifacts import Checkpoint, Manifest
from models.reproduction import StageReproduction
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import compare_weights
from tasks.execution import Execution
from tasks.provenance import version_changes
from tasks.reproducing import Step, ignore, make_whole
from tasks.restoring import obstacle
from tasks.store import ArtifactStore, read_manifest


def compare(step: Step, made: Checkpoint, store: ArtifactStore, execution: Execution) -> StageReproduction:
    """Compare a stage's new weights with those that it had."""
    anew = read_manifest(made.path)
    seconds = anew.metrics.get("seconds", 0.0)
    path = store.locate(step.name)
    unknown = StageReproduction(name=step.name, verdict="not compared", seconds=seconds)
    if path is None or step.manifest is None:
        return unknown
    changes = tuple(_changes(step.manifest, anew))
    same = _weights(anew) == _weights(step.manifest)
    if not same and obstacle(store, path):
        return unknown
    difference = 0.0 if same else _difference(made.path, path, store, execution)
    verdict = "same" if same else "different"
    return StageReproduction(
        name=step.name, verdict=verdict, relative_difference=difference, changes=changes, seconds=seconds
    )


def _difference(made: Path, recorded: Path, store: ArtifactStore, execution: Execution) -> float:
    """Norm of the difference of the weights, relative to the recorded ones."""
    make_whole(store, recorded, execution)
    arguments, options = (made, recorded), ChildOptions.of(execution, (0,))
    return float(run_in_child(compare_weights, arguments, options, ignore, ignore))


def _weights(manifest: Manifest) -> dict[str, str]:
    """Digests of the merged weights; the adapter's, which they come from, need not be there."""
    return {entry.path: entry.sha256 for entry in manifest.files if fnmatch(entry.path, "model*.safetensors")}


def _changes(before: Manifest, now: Manifest) -> list[str]:
    """What was not as it was, in words."""
    machine = [
        f"{key} {before.machine[key]} -> {value}"
        for key, value in now.machine.items()
        if before.machine.get(key, value) != value
    ]
    groups = [_group(each) for each in (before, now)]
    group = [f"{groups[0]} -> {groups[1]}"] if groups[0] != groups[1] else []
    commits = [each.code.get("commit", "")[:12] for each in (before, now)]
    commit = [f"commit {commits[0]} -> {commits[1]}"] if all(commits) and commits[0] != commits[1] else []
    return [*version_changes(before.versions), *machine, *group, *commit]


def _group(manifest: Manifest) -> str:
    """The processes that a checkpoint was last trained with, and what they spread over themselves."""
    last = manifest.attempts[-1] if manifest.attempts else None
    if last is None or last.processes == 1:
        return "1 process"
    return f"{last.processes} processes ({last.sharding})"
