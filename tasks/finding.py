"""What a user means by a word: an alias, a folder, a stage, a name or the beginning of a fingerprint."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

from models.artifacts import Checkpoint, Kind, Manifest, Stage
from models.errors import DamagedArtifact, InputError
from models.fingerprint import ID_LENGTH
from tasks.aliases import read_alias
from tasks.pruned import is_pruned
from tasks.store import FOLDERS, MANIFEST, ArtifactStore, damage, readable_manifest

_MODELS: tuple[Kind, ...] = ("checkpoint", "base")
_MOST_NAMED = 10


def resolve(store: ArtifactStore, wanted: str, *kinds: Kind) -> tuple[Path, Manifest]:
    """What a user means by an alias, a folder, a stage (its newest), a name or a fingerprint's beginning.

    Args:
        store: The artifact root.
        wanted: The user's word.
        kinds: What may be meant; default: models, that is checkpoints and base models.

    Raises:
        InputError: nothing or more than one thing matches.
        DamagedArtifact: what matches, or the alias, cannot be read.
    """
    if alias := read_alias(store.home, wanted):
        if not store.locate(alias.checkpoint):
            raise InputError(f"'{wanted}' points to {alias.checkpoint}, which is not in {store.home}; promote anew")
        wanted = alias.checkpoint
    kinds = kinds or _MODELS
    matches = [path for kind in kinds for path in store.newest_first(kind, partial(_means, wanted, kind))]
    matches = sorted(matches, key=is_pruned) or [place for kind in kinds if (place := _place(store, wanted, kind))]
    read = ((path, manifest) for path in matches if (manifest := readable_manifest(path)) and _fits(wanted, manifest))
    found = list(islice(read, 1 if wanted in get_args(Stage) else 2))
    if len(found) == 1:
        return found[0]
    if matches and not found and (problems := damage(matches[0])):
        raise DamagedArtifact(f"{problems[0]}; run its recipe again to make it anew")
    there = matches if found else [path for kind in kinds for path in store.newest_first(kind)]
    names = _listed(there) or "none yet; run a recipe first"
    rule = "matches several folders" if found else "matches nothing"
    remedy = "give an alias, a stage (for its newest), a folder or more of a name"
    raise InputError(f"'{wanted}' {rule} in {store.home}; {remedy}: {names}")


def as_checkpoint(path: Path, manifest: Manifest) -> Checkpoint:
    """The model in a finished folder, as stages and evaluations take it."""
    identity = manifest.identity
    return Checkpoint(
        path=path,
        fingerprint=manifest.fingerprint,
        stage=identity["stage"],
        precision=identity["precision"],
        metrics=manifest.metrics,
    )


def _place(store: ArtifactStore, wanted: str, kind: Kind) -> Path | None:
    """The finished folder of that kind that a user names by its path."""
    path = Path(wanted).absolute()
    return path if path == store.folder(kind, path.name) and (path / MANIFEST).exists() else None


def _means(wanted: str, kind: Kind, name: str) -> bool:
    """Whether a folder's name agrees with what a user wants, as far as the name goes."""
    digits = name[-ID_LENGTH:]
    names = (name, digits) if kind == "checkpoint" else (name, f"{kind}-{digits}")
    return any(each.startswith(wanted) or wanted.startswith(each) for each in names)


def _fits(wanted: str, manifest: Manifest) -> bool:
    """Whether the digits of a longer fingerprint than a folder's name has are the manifest's."""
    beginning = manifest.fingerprint[:ID_LENGTH]
    _, found, rest = wanted.partition(beginning)
    return "/" in wanted or not found or manifest.fingerprint.startswith(found + rest)


def _listed(paths: list[Path]) -> str:
    """The names of folders, the first few of many."""
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(map(_called, paths[:_MOST_NAMED])) + more


def _called(path: Path) -> str:
    """A folder's name, with what it is where its name does not say it: `base-0123456789abcdef`."""
    kind = next(kind for kind, folder in FOLDERS.items() if folder == path.parent.name)
    return path.name if kind == "checkpoint" else f"{kind}-{path.name}"
