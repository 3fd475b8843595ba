"""What a folder is made of, down to base model and datasets, and what was made from it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from models.artifacts import Ancestor, Kind, Manifest
from models.errors import DamagedArtifact, InputError
from models.lineage import FolderState, LineageGraph, LineageNode
from tasks.finding import resolve
from tasks.index import Index
from tasks.pruned import is_pruned
from tasks.store import ArtifactStore, read_manifest

KINDS: tuple[Kind, ...] = ("checkpoint", "base", "dataset", "evaluation")
"""All kinds of folders, what people mostly ask for first."""


def ancestry(store: ArtifactStore, path: Path) -> LineageGraph:
    """Follow the parents of a finished folder to their ends; of those that are gone, their children tell."""
    told: dict[str, Ancestor] = {}
    nodes: dict[str, LineageNode] = {}
    waiting = [path.name]
    for name in waiting:
        if name in nodes:
            continue
        place = path if name == path.name else store.locate(name)
        nodes[name] = _node(name, place, told)
        waiting += nodes[name].parents.values()
    return LineageGraph(root=path.name, direction="ancestors", nodes=nodes)


def lineage_of(store: ArtifactStore, wanted: str) -> LineageGraph:
    """Everything that what a user means was made from; that may be gone itself.

    Raises:
        InputError: nothing or more than one thing matches, here and in what manifests tell of.
    """
    try:
        return ancestry(store, resolve(store, wanted, *KINDS)[0])
    except InputError:
        with Index(store.home) as index:
            root = _gone(index, wanted)
            if root is None:
                raise
            met = [root, *index.ancestors(root.name)]
        return LineageGraph(root=root.name, direction="ancestors", nodes={node.name: node for node in met})


def descent(store: ArtifactStore, wanted: str) -> LineageGraph:
    """Everything that was made from what a user means, which may be gone itself.

    Raises:
        InputError: nothing or more than one thing matches, here and in what manifests tell of.
    """
    with Index(store.home) as index:
        root = _known(store, index, wanted)
        met = [root, *index.descendants(root.name)]
    return LineageGraph(root=root.name, direction="descendants", nodes={node.name: node for node in met})


def with_ancestors(store: ArtifactStore, path: Path) -> list[Path]:
    """The folder and those of all its ancestors, each once; also where they are missing or damaged."""
    names = ancestry(store, path).nodes
    return [path if name == path.name else store.locate(name) or store.home / name for name in names]


def all_folders(store: ArtifactStore) -> list[Path]:
    """Every folder that should be finished, those with an unreadable manifest included."""
    places = [store.folder(kind, "any").parent for kind in KINDS]
    return [path for place in places if place.is_dir() for path in sorted(place.glob("[!.]*")) if path.is_dir()]


def edges(graph: LineageGraph) -> Iterator[tuple[str, str, str]]:
    """Child, role and parent of every hand-over between folders of the graph."""
    for node in graph.nodes.values():
        for role, parent in node.parents.items():
            if parent in graph.nodes:
                yield node.name, role, parent


def _node(name: str, place: Path | None, told: dict[str, Ancestor]) -> LineageNode:
    """What is known of a folder: by its manifest, which also adds to what is told of others, or by what is told."""
    state: FolderState = "damaged" if place else "missing"
    with suppress(DamagedArtifact):
        if place:
            manifest = read_manifest(place)
            for ancestor, said in manifest.ancestors.items():
                told.setdefault(ancestor, said)
            return _described(name, "pruned" if is_pruned(place) else "there", manifest)
    return _described(name, state, told[name]) if name in told else LineageNode(name=name, state=state)


def _described(name: str, state: FolderState, said: Manifest | Ancestor) -> LineageNode:
    here = {"run": said.run, "metrics": said.metrics} if isinstance(said, Manifest) else {}
    return LineageNode(
        name=name,
        state=state,
        kind=said.kind,
        stage=str(said.identity.get("stage", "")),
        fingerprint=said.fingerprint,
        created=said.created,
        parents=said.parents,
        origin=said.origin,
        **here,
    )


def _known(store: ArtifactStore, index: Index, wanted: str) -> LineageNode:
    """The folder that a user means, or the one that is gone and that manifests tell of."""
    there = [node for node in index.matching(wanted) if node.state != "missing"]
    if len(there) == 1:
        return there[0]
    try:
        path, _ = resolve(store, wanted, *KINDS)
    except InputError:
        if gone := _gone(index, wanted):
            return gone
        raise
    return index.get(path.name) or LineageNode(name=path.name, state="missing")


def _gone(index: Index, wanted: str) -> LineageNode | None:
    """The only folder that a user can mean, where it is gone and manifests tell of it."""
    matching = index.matching(wanted)
    return matching[0] if len(matching) == 1 and matching[0].state == "missing" else None
