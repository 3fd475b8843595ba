"""Free space in an artifact root: first a plan, then its carrying out. Manifests stay, and lineage with them.

Kept are: what an alias points to or pointed to last, what waits for approval, what the newest runs and those at work
made or need, what cannot be made again, the ancestors of all that, and evaluations of it. What goes, goes behind a
mark: it is neither damaged nor served, and whatever needs it again rebuilds it from adapter and parent, or trains it.
"""

import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from models.artifacts import Kind, Manifest, Pruned
from models.errors import DamagedArtifact, InputError
from models.pruning import PruneItem, PrunePlan, What
from tasks.aliases import all_aliases
from tasks.decisions import awaited
from tasks.lineage import KINDS, ancestry
from tasks.pruned import is_pruned, mark_pruned, read_pruned
from tasks.restoring import Computing, Telling, merged_weights, rebuild_weights
from tasks.run_record import all_runs, is_at_work, runs_at_work
from tasks.store import ArtifactStore, damage, read_manifest, utc_now

_ASIDE: tuple[tuple[str, What], ...] = ((".partial", "unfinished"), (".damaged", "damaged"), (".replaced", "replaced"))
_SECONDS_OF_A_DAY = 86_400


def plan_prune(store: ArtifactStore, keep: int, older_than_days: float, drop_merged: bool) -> PrunePlan:
    """Say of every folder whether it goes or stays, and why; nothing is written.

    Args:
        store: The artifact root.
        keep: The checkpoints of so many newest runs stay.
        older_than_days: Unfinished, damaged and replaced folders go after so long.
        drop_merged: Whether merged weights of what stays go, too, where adapter and parent can give them back.

    Raises:
        InputError: a run's record cannot be read, so that nobody knows what it needs.
        DamagedArtifact: the file of an alias cannot be read.
    """
    reasons = _kept(store, keep)
    pointed_to = {alias.checkpoint for alias in all_aliases(store.home)}
    items = []
    for kind in KINDS:
        for path in store.newest_first(kind):
            if not path.is_symlink():
                droppable = drop_merged and path.name not in pointed_to
                items.append(_finished_item(path, kind, reasons.get(path.name, ""), droppable))
    before = time.time() - older_than_days * _SECONDS_OF_A_DAY
    return PrunePlan(items=(*items, *_aside_items(store, before, _needed_now(store))))


def carry_out(store: ArtifactStore, plan: PrunePlan, holder: str, computing: Computing, telling: Telling) -> int:
    """Do what a plan says and return how many bytes are free now; what somebody has begun to use meanwhile stays.

    Raises:
        StageError: a merge that would prove weights to be dropped failed.
    """
    freed = 0
    for item in plan.items:
        if item.action != "keep" and item.path.name not in _needed_now(store):
            telling(f"{item.action}: {item.path.relative_to(store.home)}")
            freed += _let_go(store, item, holder, computing, telling)
    return freed


def _kept(store: ArtifactStore, keep: int) -> dict[str, str]:
    """Names of the finished folders that stay, each with the first reason for it."""
    reasons: dict[str, str] = {}
    for name, why in chain(_by_people(store), _by_runs(store, keep), _by_nature(store)):
        path = store.locate(name)
        reasons.setdefault(name, why)
        for ancestor in ancestry(store, path).nodes if path else ():
            reasons.setdefault(ancestor, f"{name} was made from it")
    for path, manifest in store.manifests("evaluation"):
        judged = manifest.parents.get("checkpoint", "")
        if judged in reasons:
            for name in (path.name, *manifest.parents.values()):
                reasons.setdefault(name, f"evaluation of {judged}")
    return reasons


def _by_people(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    for alias in all_aliases(store.home):
        yield alias.checkpoint, f"alias {alias.name}"
        if previous := alias.history[-1].previous:
            yield previous, f"alias {alias.name} pointed to it before"
    for decision in awaited(store.home):
        yield decision.checkpoint, f"it waits for approval as {decision.alias}"


def _by_runs(store: ArtifactStore, keep: int) -> Iterator[tuple[str, str]]:
    records, problems = all_runs(store.home)
    if problems:
        raise InputError(f"{problems[0]}\nremove that run's folder, or put it right: nobody knows what the run needs")
    for number, record in enumerate(records):
        at_work = is_at_work(record.id, store.home)
        if number < keep or at_work:
            why = "a run at work needs it" if at_work else f"run {record.id} made or took it"
            taken = (outcome.checkpoint.path.name for outcome in record.stages)
            yield from ((name, why) for name in (*taken, *record.needs))


def _by_nature(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        for path, manifest in store.manifests(kind):
            if why := _irreplaceable(store, path, manifest):
                yield path.name, why


def _irreplaceable(store: ArtifactStore, path: Path, manifest: Manifest) -> str:
    """Why a folder cannot be made again; empty where it can."""
    if manifest.kind == "base" and manifest.origin.get("source") == "folder":
        return "made from a local folder, which may be gone"
    if manifest.kind == "dataset" and (manifest.origin.get("files") or not manifest.origin):
        return "made from local files, which may be gone"
    if manifest.kind != "checkpoint":
        return ""
    if not (store.home / "runs" / manifest.run).is_dir() or not manifest.run:
        return "made by a run that is not here"
    nodes = ancestry(store, path).nodes.values()
    gone = [node.name for node in nodes if node.state in ("missing", "damaged") and node.name != path.name]
    return f"what it was made from is not here: {gone[0]}" if gone else ""


def _needed_now(store: ArtifactStore) -> set[str]:
    """Names of everything that runs at work take or make."""
    return {name for record in runs_at_work(store.home) for name in record.needs}


def _finished_item(path: Path, kind: Kind, reason: str, drop_merged: bool) -> PruneItem:
    item = PruneItem(path=path, what=kind, kind=kind, action="keep", why=reason, size_bytes=_size(path))
    try:
        manifest, marker = read_manifest(path), read_pruned(path)
    except DamagedArtifact:
        return item.model_copy(update={"why": "its manifest cannot be read; a run that meets it moves it aside"})
    listed = [entry.path for entry in manifest.files]
    if not reason:
        frees = sum(_size(path / name) for name in listed)
        why = "nothing that is kept was made from it" if frees else "pruned before"
        return item.model_copy(update={"action": "remove" if frees else "keep", "why": why, "frees_bytes": frees})
    weights = merged_weights(manifest) if drop_merged and not marker else []
    if weights:
        frees = sum(_size(path / name) for name in weights)
        return item.model_copy(update={"action": "drop weights", "frees_bytes": frees})
    return item


def _aside_items(store: ArtifactStore, before: float, needed: set[str]) -> Iterator[PruneItem]:
    """Unfinished folders and what was moved aside, which go when nothing has changed in them for long enough."""
    for kind in KINDS:
        for folder, what in _ASIDE:
            for path in (store.folder(kind, "any").parent / folder).glob("*"):
                changed = max((each.lstat().st_mtime for each in (path, *path.rglob("*"))), default=0.0)
                young = changed > before
                busy = path.name in needed or store.is_locked(kind, path.name)
                why = "somebody is at work on it" if busy else "younger than --older-than" if young else "old"
                stays, size = busy or young or path.is_symlink(), _size(path)
                yield PruneItem(
                    path=path,
                    what=what,
                    kind=kind,
                    action="keep" if stays else "remove",
                    why=why,
                    size_bytes=size,
                    frees_bytes=0 if stays else size,
                )


def _let_go(store: ArtifactStore, item: PruneItem, holder: str, computing: Computing, telling: Telling) -> int:
    """Remove what the plan says of one folder, unless somebody holds it; returns the bytes that are free now."""
    with store.lock_if_free(item.kind, item.path.name) as free:
        if not free or not item.path.is_dir() or not item.path.resolve().is_relative_to(store.home.resolve()):
            return 0
        if item.what in ("unfinished", "damaged", "replaced"):
            shutil.rmtree(item.path)
            return item.frees_bytes
        manifest = read_manifest(item.path)
        names = [entry.path for entry in manifest.files]
        if item.action == "drop weights":
            names = merged_weights(manifest)
            if damage(item.path) or not _comes_back(store, item.path, holder, computing, telling):
                return 0
        return remove_files(item.path, names, item.why)


def _comes_back(store: ArtifactStore, path: Path, holder: str, computing: Computing, telling: Telling) -> bool:
    """Whether adapter and parent give the very same weights, as one merge shows."""
    trial = store.partial("checkpoint", f"{path.name}.trial")
    try:
        rebuild_weights(store, path, trial, holder, computing, telling)
    except (InputError, DamagedArtifact) as error:
        telling(f"kept: {error}")
        return False
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return True


def remove_files(path: Path, names: list[str], why: str) -> int:
    """Mark a folder, then remove files of it; those that a link would lead to elsewhere stay.

    Returns:
        Bytes that are free now.
    """
    inside = [name for name in names if (path / name).parent.resolve().is_relative_to(path.resolve())]
    freed = sum(_size(path / name) for name in inside)
    before = read_pruned(path) if is_pruned(path) else None
    files = tuple(dict.fromkeys((*(before.files if before else ()), *inside)))
    mark_pruned(path, Pruned(files=files, when=utc_now(), why=why))
    for name in inside:
        (path / name).unlink(missing_ok=True)
    for folder in sorted({(path / name).parent for name in inside} - {path}, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed


def _size(path: Path) -> int:
    """Bytes of a file or of all files below a folder; links count as such."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if path.exists() or path.is_symlink() else 0
    return sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
