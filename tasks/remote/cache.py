"""The bounded local root: files of finished folders that are safe in the remote go, the least recently used first."""

import time
from collections.abc import Iterator
from datetime import datetime

from models.artifacts import Kind, Manifest
from tasks.pruned import is_pruned
from tasks.pruning import remove_files
from tasks.remote.remote import Remote
from tasks.remote.uses import last_use, unless_taken
from tasks.run_record import runs_at_work
from tasks.store import FOLDERS, ArtifactStore


def make_room(store: ArtifactStore, remote: Remote) -> int:
    """Remove files of finished folders until the rest takes no more than allowed; their manifests stay.

    What is not in the remote stays, and so does what processes that live have taken and what runs at work need.

    Returns:
        Bytes that are free now.
    """
    if remote.cache_bytes is None:
        return 0
    folders = sorted(_whole(store))
    taken, freed = sum(size for _, _, _, size in folders), 0
    runs = runs_at_work(store.home)
    needed = {name for run in runs for name in run.needs}
    since = min((datetime.fromisoformat(run.started).timestamp() for run in runs), default=time.time() + 1)
    for used, kind, name, _ in folders:
        if taken - freed <= remote.cache_bytes:
            break
        if name not in needed and used < since:
            freed += _let_go(store, remote, kind, name)
    return freed


def _let_go(store: ArtifactStore, remote: Remote, kind: Kind, name: str) -> int:
    path = store.folder(kind, name)
    with store.lock_if_free(kind, name) as free, unless_taken(store, kind, name) as idle:
        movable = free and idle and not is_pruned(path) and remote.has(path)
        manifest = remote.manifest(kind, name) if movable else None
        if not manifest:
            return 0
        return remove_files(path, [entry.path for entry in manifest.files], f"it is in {remote.url}")


def _whole(store: ArtifactStore) -> Iterator[tuple[float, Kind, str, int]]:
    """When each folder whose files are here was last used, its kind and name, and its size in bytes."""
    for kind in FOLDERS:
        for path, manifest in store.manifests(kind):
            if not is_pruned(path) and not path.is_symlink():
                yield last_use(store, kind, path.name), kind, path.name, _size(manifest)


def _size(manifest: Manifest) -> int:
    return sum(entry.size_bytes for entry in manifest.files)
