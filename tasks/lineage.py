"""What a checkpoint is made of: its manifest's parents, and theirs, down to the base model and the datasets."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from models.artifacts import Kind
from models.contract import Contract
from models.errors import DamagedArtifact
from tasks.store import ArtifactStore, read_manifest

_KINDS: tuple[Kind, ...] = ("checkpoint", "base", "dataset", "evaluation")


class LineageNode(Contract):
    """One artifact and everything that it was made from."""

    role: str
    """What its child used it as: `policy`, `reward_model`, `dataset`, …; `checkpoint` at the top."""
    name: str
    """Name of its folder."""
    kind: Kind | Literal["missing"]
    """What the folder holds; `missing`: it is not in this artifact root (any more)."""
    fingerprint: str = ""
    """All 64 digits; empty where the folder is missing."""
    created: str = ""
    """UTC time, ISO 8601."""
    origin: dict[str, Any] = {}
    """Where the content came from."""
    metrics: dict[str, float] = {}
    """Figures measured while making it."""
    parents: tuple["LineageNode", ...] = ()
    """What it was made from, in the order of the manifest."""


def trace(store: ArtifactStore, path: Path, role: str = "checkpoint") -> LineageNode:
    """Follow the parents of a finished folder to their ends.

    Raises:
        DamagedArtifact: a manifest on the way cannot be read.
    """
    manifest = read_manifest(path)
    return LineageNode(
        role=role,
        name=path.name,
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        created=manifest.created,
        origin=manifest.origin,
        metrics=manifest.metrics,
        parents=tuple(_trace_parent(store, role, name) for role, name in manifest.parents.items()),
    )


def with_ancestors(store: ArtifactStore, path: Path) -> list[Path]:
    """The folder and those of all its ancestors, each once; also where they are missing or damaged."""
    found = [path]
    with suppress(DamagedArtifact):
        for name in read_manifest(path).parents.values():
            found += with_ancestors(store, store.locate(name) or store.home / name)
    return list(dict.fromkeys(found))


def all_folders(store: ArtifactStore) -> list[Path]:
    """Every folder that should be finished, those with an unreadable manifest included."""
    places = [store.folder(kind, "any").parent for kind in _KINDS]
    return [path for place in places if place.is_dir() for path in sorted(place.glob("[!.]*")) if path.is_dir()]


def _trace_parent(store: ArtifactStore, role: str, name: str) -> LineageNode:
    path = store.locate(name)
    return trace(store, path, role) if path else LineageNode(role=role, name=name, kind="missing")
