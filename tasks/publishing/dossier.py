"""Everything that is known of a checkpoint, gathered from manifests for its model card and bill of materials."""

from collections.abc import Iterator
from typing import Any

from models.artifacts import Ancestor, Manifest
from models.evaluation import Estimate, HeldOutFigures
from models.publishing import DatasetUse, Dossier, Judgement, LicenseClaim
from tasks.pruned import is_pruned
from tasks.publishing.licences import claim, combine
from tasks.store import ArtifactStore, damage, read_manifest


def gather(store: ArtifactStore, name: str, manifest: Manifest) -> Dossier:
    """What manifests and evaluations of the artifact root say of a checkpoint.

    A manifest of an early layout names its parents alone: theirs are looked up.
    """
    ancestors = store.ancestors_of(manifest)
    lineage = dict(_in_order(name, {name: manifest.as_ancestor()} | ancestors))
    wanted = {parent for each in lineage.values() for parent in each.parents.values()}
    datasets = tuple(_training_data(store, lineage))
    return Dossier(
        name=name,
        manifest=manifest,
        lineage=lineage,
        missing=tuple(sorted(wanted - lineage.keys())),
        datasets=datasets,
        judgements=tuple(_judgements(store, name)),
        licensing=combine(_claims(lineage, datasets)),
    )


def _in_order(name: str, known: dict[str, Ancestor]) -> Iterator[tuple[str, Ancestor]]:
    """Parents before what was made from them; each as often as it is a parent, which a dictionary puts right."""
    if name in known:
        for parent in known[name].parents.values():
            yield from _in_order(parent, known)
        yield name, known[name]


def _training_data(store: ArtifactStore, lineage: dict[str, Ancestor]) -> Iterator[DatasetUse]:
    for each in lineage.values():
        name = each.parents.get("dataset")
        if each.kind == "checkpoint" and name:
            said = {key: value for key, value in each.origin.get("dataset", {}).items() if value is not None}
            yield _dataset_use(store, name, lineage.get(name), str(each.identity["stage"]), said)


def _dataset_use(
    store: ArtifactStore, name: str, snapshot: Ancestor | None, use: str, said: dict[str, Any]
) -> DatasetUse:
    """A snapshot as the stage that used it names it, where that is known: others may have the same rows as it has."""
    origin = (snapshot.origin if snapshot else {}) | said
    files = origin.get("files", {})
    path = store.locate(name)
    rows = read_manifest(path).metrics.get("rows") if path else None
    return DatasetUse(
        name=name,
        use=use,
        source=str(origin.get("path", "unknown")),
        on_hub=bool(snapshot) and "path" in origin and not files,
        revision=str(origin.get("commit") or origin.get("revision") or ""),
        split=str(origin.get("split", "")),
        sha256=str(snapshot.identity.get("rows_sha256", "")) if snapshot else "",
        files=files,
        rows=int(rows) if rows is not None else None,
        rules=origin.get("rules", {}),
        license=str(origin.get("license") or ""),
    )


_HELD_OUT = ("prompts", "preferences")
"""Ends of the roles that an evaluation's datasets have."""


def _judgements(store: ArtifactStore, name: str) -> Iterator[Judgement]:
    """Undamaged evaluations of the checkpoint, newest first."""
    for path, manifest in store.manifests("evaluation"):
        if manifest.parents.get("checkpoint") == name and not is_pruned(path) and not damage(path):
            held_out = {role: name for role, name in manifest.parents.items() if role.endswith(_HELD_OUT)}
            known = store.ancestors_of(manifest)
            yield Judgement(
                id=path.name,
                created=manifest.created,
                figures=_figures((path / "result.json").read_bytes()),
                datasets=tuple(
                    _dataset_use(store, parent, known.get(parent), role, {}) for role, parent in held_out.items()
                ),
            )


def _figures(result: bytes) -> dict[str, Estimate]:
    """Every figure of an evaluation's result by name; those of a kind of row where there are several kinds."""
    figures = HeldOutFigures.model_validate_json(result).estimates()
    kinds = [name.partition("/")[0] for name in figures if "/" in name]
    return {name: each for name, each in figures.items() if "/" not in name or kinds.count(name.partition("/")[0]) > 1}


def _claims(lineage: dict[str, Ancestor], datasets: tuple[DatasetUse, ...]) -> Iterator[LicenseClaim]:
    """One for the base model and one for each dataset, which counts once where several stages call it the same."""
    for each in lineage.values():
        if each.kind == "base":
            what = "reward model" if each.is_scorer else "base model"
            yield claim(f"{what} {each.origin.get('name', 'of unknown name')}", each.origin.get("license"))
    for data in dict.fromkeys((data.source, data.license) for data in datasets):
        yield claim(f"dataset {data[0]}", data[1])
