"""What differs between two checkpoints: recipe, data, parents, code, versions, machine, attempts and figures."""

from collections.abc import Iterator
from typing import Any

from models.artifacts import Ancestor, Manifest
from models.evaluation import Estimate, HeldOutFigures
from models.lineage import Change, Difference, HeldOutFigure
from tasks.finding import resolve
from tasks.index import Index
from tasks.store import ArtifactStore, damage

Facts = dict[str, Any]
"""Values by dotted names."""

_NOT_ASKED_FOR = {"stage", "code_version", "parents", "versions", "origin"}
"""Parts of an identity that are told in another section."""


def difference(store: ArtifactStore, a: str, b: str) -> Difference:
    """Compare two checkpoints by their manifests, their ancestors of the same stage included.

    Args:
        store: The artifact root.
        a: What a user calls the first one.
        b: What a user calls the second one.

    Raises:
        InputError: one of them is not there, or the name means several.
        DamagedArtifact: a manifest cannot be read.
    """
    (path_a, of_a), (path_b, of_b) = resolve(store, a), resolve(store, b)
    facts_a, facts_b = _facts(store, of_a), _facts(store, of_b)
    return Difference(
        a=path_a.name,
        b=path_b.name,
        sections={name: tuple(_changes(facts_a[name], facts_b[name])) for name in facts_a},
        held_out=tuple(_held_out(store, path_a.name, path_b.name)),
    )


def flattened(values: Facts, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted names; lists stay whole."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _changes(a: Facts, b: Facts) -> Iterator[Change]:
    for key in dict.fromkeys((*a, *b)):
        if a.get(key) != b.get(key):
            yield Change(key=key, a=a.get(key), b=b.get(key))


def _facts(store: ArtifactStore, manifest: Manifest) -> dict[str, Facts]:
    """Everything to be compared, by section; recipe, data and code of each stage under the stage's name."""
    ancestors = store.ancestors_of(manifest)
    made: list[Manifest | Ancestor] = [*reversed(ancestors.values()), manifest]
    stages = {str(each.identity.get("stage", each.kind)): each for each in made if each.kind != "dataset"}
    code = {f"{stage}.code_version": each.identity.get("code_version") for stage, each in stages.items()}
    return {
        "recipe": {key: value for stage, each in stages.items() for key, value in _asked_for(stage, each)},
        "data": {key: value for stage, each in stages.items() for key, value in _data(stage, each, ancestors)},
        "parents": dict(manifest.parents),
        "code": dict(manifest.code) | code,
        "versions": dict(manifest.versions),
        "machine": dict(manifest.machine),
        "attempts": _attempts(manifest),
        "metrics": dict(manifest.metrics),
    }


def _asked_for(stage: str, said: Manifest | Ancestor) -> Iterator[tuple[str, Any]]:
    asked = {key: value for key, value in said.identity.items() if key not in _NOT_ASKED_FOR}
    asked |= asked.pop("hyperparameters", {})
    yield from flattened(asked, f"{stage}.")


def _data(stage: str, said: Manifest | Ancestor, ancestors: dict[str, Ancestor]) -> Iterator[tuple[str, Any]]:
    """Where a base model or a stage's rows come from, and their digests."""
    if stage == "base":
        yield from flattened(said.origin, "base.")
    for role, name in said.parents.items():
        snapshot = ancestors.get(name)
        if snapshot and snapshot.kind == "dataset":
            named = {key: value for key, value in said.origin.get(role, {}).items() if value is not None}
            yield from flattened({"folder": name} | snapshot.origin | named, f"{stage}.{role}.")


def _attempts(manifest: Manifest) -> Facts:
    """The attempts in short."""
    tried = manifest.attempts
    last = tried[-1:]
    return {
        "count": len(tried),
        "outcomes": [each.outcome for each in tried],
        "micro_batch": [each.per_device_train_batch_size for each in last],
    }


def _held_out(store: ArtifactStore, a: str, b: str) -> Iterator[HeldOutFigure]:
    """Figures of both on the same rows: of the newest pair of evaluations that share them."""
    with Index(store.home) as index:
        rows_a, rows_b = _judgements(index, a), _judgements(index, b)
    shared = next((rows for rows in rows_a if rows in rows_b), None)
    if shared:
        of_a, of_b = (_figures(store, found[shared]) for found in (rows_a, rows_b))
        for name in of_a:
            if name in of_b:
                yield HeldOutFigure(name=name, a=of_a[name], b=of_b[name])


def _judgements(index: Index, name: str) -> dict[tuple[str, ...], str]:
    """Names of a checkpoint's evaluations by the snapshots that they were made on, newest first."""
    found: dict[tuple[str, ...], str] = {}
    for node in index.children(name):
        if node.kind == "evaluation" and node.state == "there" and node.parents.get("checkpoint") == name:
            rows = tuple(parent for role, parent in node.parents.items() if role != "checkpoint")
            found.setdefault(rows, node.name)
    return found


def _figures(store: ArtifactStore, name: str) -> dict[str, Estimate]:
    """The figures of an evaluation; none where its folder is damaged."""
    path = store.folder("evaluation", name)
    if damage(path):
        return {}
    return HeldOutFigures.model_validate_json((path / "result.json").read_bytes()).estimates()
