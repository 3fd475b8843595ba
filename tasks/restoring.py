"""Make a checkpoint whole again whose files were pruned: fetched from the remote, or merged anew.

What comes out is believed by its digests alone: the manifest has those of the bytes that were there before.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from models.artifacts import Manifest, Pruned
from models.errors import DamagedArtifact, InputError
from models.recipe import Quantization
from tasks.files import explaining_a_full_disk, file_digest, sync
from tasks.pruned import is_pruned, read_pruned, unmark
from tasks.remote.uses import take
from tasks.store import ArtifactStore, damage, read_manifest

if TYPE_CHECKING:
    from tasks.child_main import ChildOptions

Computing = Callable[[], "AbstractContextManager[ChildOptions]"]
"""Holds whatever a child process needs to compute while it is open, and says how the child runs."""
Telling = Callable[[str], None]
"""Told what is being done, or waited for."""

_ADAPTER = "adapter"
_REMEDY = "run its recipe again to make it anew"


def restore(store: ArtifactStore, path: Path, holder: str, computing: Computing, telling: Telling) -> None:
    """Make a pruned folder whole again, its parents first; a whole one stays as it is, while this process lives.

    Args:
        store: The artifact root.
        path: A finished folder of it.
        holder: Who asks for it, as others that have to wait are told.
        computing: Gives the right to compute, and how.
        telling: Told what is being done.

    Raises:
        InputError: it cannot be rebuilt from what is here; the message says what to run instead.
        DamagedArtifact: what came out is not what the manifest says, and was thrown away.
        StageError: the merge failed.
    """
    if not store.remote and not is_pruned(path):
        return
    kind = read_manifest(path).kind
    take(store, kind, path.name)
    if not is_pruned(path):
        return
    with store.lock(kind, path.name, holder, lambda who: telling(f"waiting for {who}")):
        restore_held(store, path, holder, computing, telling)


def restore_held(store: ArtifactStore, path: Path, holder: str, computing: Computing, telling: Telling) -> None:
    """Like `restore`, for whoever holds the folder's lock already."""
    pruned, manifest = read_pruned(path), read_manifest(path)
    if not pruned:
        return
    if not _is_all_there(path, manifest, pruned):
        if store.remote and store.remote.has(path):
            telling(f"fetching {path.name} from {store.remote.url}")
            with explaining_a_full_disk(store.home):
                if store.remote.fetch(store, manifest.kind, path.name):
                    return
            telling(f"what arrived of {path.name} is damaged")
        if problem := obstacle(store, path):
            said = f"{path.name} was pruned on {pruned.when[:10]} and cannot be rebuilt here: {problem}"
            raise InputError(f"{said}; {_REMEDY}")
        folder = store.partial(manifest.kind, f"{path.name}.rebuilt")
        with explaining_a_full_disk(store.home):
            rebuild_weights(store, path, folder, holder, computing, telling)
            for name in pruned.files:
                sync(folder / name)
                (folder / name).replace(path / name)
        shutil.rmtree(folder)
    unmark(path)


def obstacle(store: ArtifactStore, path: Path) -> str:
    """Why a finished folder cannot be made whole from what is in this artifact root; empty where it can, or is."""
    try:
        pruned, manifest = read_pruned(path), read_manifest(path)
    except DamagedArtifact as error:
        return str(error)
    if not pruned or (store.remote and store.remote.has(path)):
        return ""
    if not set(pruned.files) <= set(merged_weights(manifest)) or not (path / _ADAPTER).is_dir():
        return "more was removed than its merged weights"
    parent = store.locate(manifest.parents["policy"])
    if not parent:
        return f"its parent {manifest.parents['policy']} is not in {store.home}"
    problem = obstacle(store, parent)
    return f"{parent.name}, its parent, was pruned: {problem}" if problem else ""


def merged_weights(manifest: Manifest) -> list[str]:
    """The files of a checkpoint that a merge of its adapter would write again; none where it has no adapter."""
    names = [entry.path for entry in manifest.files]
    if "policy" not in manifest.parents or not any(name.startswith(f"{_ADAPTER}/") for name in names):
        return []
    return [name for name in names if name.endswith(".safetensors") and "/" not in name]


def rebuild_weights(
    store: ArtifactStore, path: Path, folder: Path, holder: str, computing: Computing, telling: Telling
) -> None:
    """Merge a checkpoint's adapter and parent, made whole first, into `folder`, and compare with its manifest.

    Raises:
        DamagedArtifact: the bytes differ; nothing is left in `folder`.
        InputError: the parent cannot be made whole.
        StageError: the merge failed.
    """
    from tasks.child import run_in_child
    from tasks.core.entry import rebuild

    manifest = read_manifest(path)
    parent = store.locate(manifest.parents["policy"])
    if not parent:
        raise InputError(f"{path.name}: its parent {manifest.parents['policy']} is not in {store.home}; {_REMEDY}")
    restore(store, parent, holder, computing, telling)
    shutil.rmtree(folder, ignore_errors=True)
    quantization = manifest.identity.get("quantization")
    merging = (
        "SEQ_CLS" if manifest.identity["stage"] == "reward" else "CAUSAL_LM",
        manifest.identity["precision"],
        Quantization.model_validate(quantization) if quantization else None,
    )
    telling(f"rebuilding {path.name} from {parent.name} and its adapter")
    try:
        with computing() as options:
            arguments = (parent, path / _ADAPTER, merging, folder)
            run_in_child(rebuild, arguments, options, lambda said: None, lambda line: None)
        _compare(path, manifest, folder, parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _compare(path: Path, manifest: Manifest, folder: Path, parent: Path) -> None:
    expected = {entry.path: entry.sha256 for entry in manifest.files}
    for name in merged_weights(manifest):
        if not (folder / name).is_file() or file_digest(folder / name) != expected[name]:
            reason = next(iter(damage(path) + damage(parent)), "other versions of the libraries, or another machine")
            said = f"{path.name}: rebuilt from {parent.name} and its adapter, {name} is not what it was"
            raise DamagedArtifact(f"{said} ({reason}); {_REMEDY}")


def _is_all_there(path: Path, manifest: Manifest, pruned: Pruned) -> bool:
    """Whether a crash has left the mark of a folder from which nothing went, or to which everything came back."""
    expected = {entry.path: entry.sha256 for entry in manifest.files}
    there = all((path / name).is_file() for name in pruned.files)
    return there and all(file_digest(path / name) == expected.get(name) for name in pruned.files)
