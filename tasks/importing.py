"""Take finished folders of another artifact root in: verified byte by byte, under their own names, by one rename each.

What comes in is what its manifest says, so a run that leads to the same fingerprint takes it as if it was made here.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from models.artifacts import Kind, Manifest, Stage
from models.contract import Contract
from models.errors import DamagedArtifact, InputError, StageError
from models.fingerprint import ID_LENGTH
from tasks.files import explaining_a_full_disk
from tasks.lineage import with_ancestors
from tasks.pruned import is_pruned
from tasks.store import MANIFEST, ArtifactStore, Waiting, damage, read_manifest

Outcome = Literal["imported", "there", "pruned"]


class Imported(Contract):
    """What became of one folder that was to come in."""

    name: str
    """Name of the folder in the artifact root."""
    kind: Kind
    """What it holds."""
    outcome: Outcome
    """It came in, it was there already, or its files were pruned where it comes from."""


class Import(Contract):
    """What an import brought in."""

    folders: tuple[Imported, ...]
    """The folder asked for, and then those of its ancestors that lie beside it, where they were asked for."""
    missing: tuple[str, ...]
    """Names of its ancestors that are not in this artifact root; its manifest tells of them."""


class _Source(NamedTuple):
    name: str
    kind: Kind
    place: Path


def import_folder(
    store: ArtifactStore, folder: Path, ancestors: bool, waiting: Waiting, telling: Callable[[str], None]
) -> Import:
    """Copy a finished folder into the artifact root, unless it is there.

    Args:
        store: The artifact root.
        folder: A folder with a manifest, whatever it is called.
        ancestors: Whether to take those of its ancestors, too, that lie beside it in its own artifact root.
        waiting: Called where another process is at work on one of them.
        telling: Told what is being done.

    Raises:
        InputError: it is no finished folder, of a newer layout, damaged or pruned; nothing was written.
        StageError: it changed while it was copied, or the disk is full.
    """
    wanted, manifest = _look_at(folder.absolute())
    sources = [wanted, *(_beside(wanted, manifest) if ancestors else ())]
    outcomes = {source: _foresee(store, source) for source in sources}
    if outcomes[wanted] == "pruned":
        raise InputError(f"{wanted.place}: its files were pruned there; make it whole there first")
    coming = [source for source, outcome in outcomes.items() if outcome == "imported"]
    for source in coming:
        telling(f"verifying {source.name}")
        if problems := damage(source.place, source.name):
            raise InputError(f"{problems[0]}; nothing was imported; copy the folder again")
    with explaining_a_full_disk(store.home):
        for source in reversed(coming):  # parents first
            telling(f"copying {source.name}")
            with store.lock(source.kind, source.name, f"an import (process {os.getpid()})", waiting):
                if not store.find(source.kind, source.name):
                    _copy(store, source)
    known = store.ancestors_of(manifest) or manifest.parents.values()
    return Import(
        folders=tuple(Imported(name=each.name, kind=each.kind, outcome=said) for each, said in outcomes.items()),
        missing=tuple(name for name in known if not store.locate(name)),
    )


def _look_at(place: Path) -> tuple[_Source, Manifest]:
    """What a folder claims to be.

    Raises:
        InputError: it is not there, or has no manifest that can be read.
    """
    if not (place / MANIFEST).is_file():
        why = "has no manifest.json" if place.is_dir() else "no such folder"
        raise InputError(f"{place}: {why}; give a finished folder, such as another artifact root's checkpoints/<name>")
    try:
        manifest = read_manifest(place)
    except DamagedArtifact as error:
        raise InputError(f"{error}; nothing was imported") from None
    name = manifest.fingerprint[:ID_LENGTH]
    if manifest.kind == "checkpoint":
        stage = manifest.identity.get("stage")
        if stage not in get_args(Stage):
            raise InputError(f"{place / MANIFEST}: unknown stage '{stage}'; stages: {', '.join(get_args(Stage))}")
        name = f"{stage}-{name}"
    return _Source(name, manifest.kind, place), manifest


def _beside(wanted: _Source, manifest: Manifest) -> list[_Source]:
    """The ancestors of a folder that are finished in the artifact root that it lies in."""
    root = ArtifactStore(wanted.place.parent.parent)
    names = manifest.ancestors or [path.name for path in with_ancestors(root, wanted.place)[1:]]
    found = [(name, _look_at(place)[0]) for name in names if (place := root.locate(name))]
    return [source for name, source in found if source.name == name]  # others lie somewhere else


def _foresee(store: ArtifactStore, source: _Source) -> Outcome:
    """What will become of a folder."""
    place = store.folder(source.kind, source.name)
    if (place / MANIFEST).exists() and not is_pruned(place) and not damage(place):
        return "there"
    return "pruned" if is_pruned(source.place) else "imported"


def _copy(store: ArtifactStore, source: _Source) -> None:
    """Copy what the manifest lists, verify the copy, and move it in."""
    copy = store.partial(source.kind, f"{source.name}.import")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        copy.mkdir(parents=True)
        for name in (MANIFEST, *(entry.path for entry in read_manifest(source.place).files)):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.place / name, copy / name)
        made = (source.place / MANIFEST).stat()
        os.utime(copy / MANIFEST, ns=(made.st_atime_ns, made.st_mtime_ns))  # by which a stage's newest is known
        if damage(copy, source.name):
            raise StageError(f"{source.place}: it changed while it was copied; import it again")
        store.move_in(copy, source.kind, source.name)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
