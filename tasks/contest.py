"""Models that shall be judged or compared: who they are, what to measure them with, and the page about two."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.artifacts import Checkpoint, Manifest
from models.comparison import Comparison
from models.errors import InputError
from models.evaluation import EvaluationResult
from models.recipe import Recipe
from models.run import RunRecord
from tasks.files import replace_file
from tasks.finding import as_checkpoint, resolve
from tasks.reporting.compare_page import render_comparison
from tasks.restoring import obstacle
from tasks.run_record import all_runs
from tasks.store import MANIFEST, ArtifactStore, read_manifest


@dataclass(frozen=True)
class Contest:
    """One or two policies and what they are measured with."""

    entrants: tuple[tuple[Checkpoint, Checkpoint | None], ...]
    """Each with the model that it was trained from, where that is still there."""
    recipe: Recipe
    """Says what to measure on which rows."""
    reward_model: Checkpoint | None
    """Scorer of the replies: the run's own, where it made one."""


def find_entrants(store: ArtifactStore, wanted: Sequence[str], recipe: Recipe | None = None) -> Contest:
    """Find out which models a user means, and what to measure them with.

    Args:
        store: The artifact root.
        wanted: Checkpoints, or runs: their last policies.
        recipe: What to measure; default: the evaluation of the newest run that has made one of them.

    Raises:
        InputError: one of them is not there or is a reward model, two are one, or no run says what to measure.
    """
    records, _ = all_runs(store.home)
    entrants = [_entrant(store, one, records) for one in wanted]
    names = [checkpoint.name for checkpoint, _ in entrants]
    if len(set(names)) < len(names):
        raise InputError(f"{' and '.join(map(repr, wanted))} are both {names[0]}; name two models")
    run = next((one for one in records if _made(one, names)), None)
    if not (recipe or run):
        made = " or ".join(dict.fromkeys(names))
        raise InputError(f"no run in {store.home} has made {made}; say what to measure with --recipe")
    scorers = [one.checkpoint for one in run.stages if one.stage == "reward"] if run else []
    there = [one for one in scorers if (one.path / MANIFEST).exists() and not obstacle(store, one.path)]
    return Contest(tuple(entrants), recipe or run.recipe, there[0] if there else None)  # type: ignore[union-attr]


def _entrant(store: ArtifactStore, wanted: str, records: list[RunRecord]) -> tuple[Checkpoint, Checkpoint | None]:
    runs = [one for one in records if one.id == wanted or (len(wanted) >= 8 and one.id.endswith(wanted))]
    policies = [one.name for one in runs[0].policies] if runs else []
    if runs and not policies:
        raise InputError(f"run {runs[0].id} has not completed, so it has no last policy; name a checkpoint")
    path, manifest = resolve(store, policies[-1] if policies else wanted)
    if manifest.identity.get("stage") == "reward":
        raise InputError(f"{path.name} is a reward model, which writes no replies; compare policies")
    return as_checkpoint(path, manifest), _parent(store, manifest)


def _parent(store: ArtifactStore, manifest: Manifest) -> Checkpoint | None:
    path = store.locate(manifest.parents.get("policy", ""))
    return as_checkpoint(path, read_manifest(path)) if path and not obstacle(store, path) else None


def _made(record: RunRecord, names: list[str]) -> bool:
    return any(outcome.checkpoint.name in names for outcome in record.stages)


def write_page(
    store: ArtifactStore,
    comparison: Comparison,
    before: EvaluationResult,
    after: EvaluationResult,
    page: Path | None = None,
) -> Path:
    """Write the page about two models and return where it lies.

    Raises:
        InputError: the file cannot be written.
    """
    entrants = (before.checkpoint, after.checkpoint)
    file = page or store.home / "comparisons" / f"{'--'.join(one.name for one in entrants)}.html"
    manifests = {one.name: read_manifest(one.path) for one in entrants}
    places = {name: store.locate(name) for name in store.ancestors([one.path.name for one in entrants])}
    manifests |= {name: read_manifest(path) for name, path in places.items() if path}
    try:
        replace_file(file, render_comparison(comparison, before, after, manifests))
    except OSError as error:
        raise InputError(f"--html: {file} cannot be written ({error.strerror}); name another file") from None
    return file.absolute()
