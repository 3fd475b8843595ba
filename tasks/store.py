"""The artifact root: folders named by fingerprint, complete once their manifest is there, never changed afterwards.

    base/<id>/  datasets/<id>/  evaluations/<id>/  checkpoints/<stage>-<id>/   finished: manifest.json was written last
    <kind>/.partial/<name>/                                                    being made; resumed after a failure
    <kind>/.damaged/<name>-<time>/                                             moved aside by a failed verification
    <kind>/.replaced/<name>-<time>/                                            moved aside for one made anew
    aliases/<name>.json                                                        names given to checkpoints
    comparisons/  judgements/                                                  pages, and what a judge has said
    runs/<id>/                                                                 resolved recipe and report of each run

A finished folder appears by one rename, so there is no moment at which half of one could be taken for a whole.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.artifacts import Ancestor, Kind, Manifest
from models.errors import DamagedArtifact
from models.fingerprint import ID_LENGTH, fingerprint
from tasks.closing import stop_if_closing
from tasks.files import differences, list_files, replace_file, sync
from tasks.pruned import PRUNED, is_pruned, read_pruned

if TYPE_CHECKING:
    from tasks.remote.remote import Remote

MANIFEST = "manifest.json"
Waiting = Callable[[str], None]
"""Told once what has to be waited for."""

FOLDERS: dict[Kind, str] = {
    "base": "base",
    "dataset": "datasets",
    "checkpoint": "checkpoints",
    "evaluation": "evaluations",
}
"""Where folders of each kind lie in an artifact root."""
_SECONDS_BETWEEN_TRIES = 0.2


class ArtifactStore:
    """Finished and unfinished folders below one artifact root."""

    def __init__(self, home: Path, remote: "Remote | None" = None) -> None:
        """Open an artifact root.

        Args:
            home: The folder on this machine.
            remote: What it shares with other machines; see `tasks.remote`.
        """
        self.home = home
        self.remote = remote
        self._locks = home / ".locks"

    def folder(self, kind: Kind, name: str) -> Path:
        """Where the finished folder of that name lies or will lie."""
        return self.home / FOLDERS[kind] / name

    def partial(self, kind: Kind, name: str) -> Path:
        """Where the folder of that name lies until it is finished."""
        return self.home / FOLDERS[kind] / ".partial" / name

    def find(self, kind: Kind, name: str) -> Manifest | None:
        """The manifest of a finished, undamaged folder; `None` where there is none, or where its files were pruned.

        Every byte is read again. A damaged folder is moved aside, never served and never deleted.
        """
        path = self.folder(kind, name)
        if not (path / MANIFEST).exists():
            return None
        if damage(path):
            self._set_aside(path, "damaged")
            return None
        return None if is_pruned(path) else read_manifest(path)

    def publish(self, content: Path, **manifest: Any) -> Manifest:
        """Complete the folder `content` with a manifest and move it to its place by one rename.

        Args:
            content: The folder to publish; it is gone afterwards.
            manifest: Fields of the manifest; `kind` and `name` (the folder's name) among them.
        """
        name = manifest.pop("name")
        ancestors = self.ancestors(manifest.get("parents", {}).values())
        files = list_files(content, MANIFEST)
        written = Manifest(created=utc_now(), ancestors=ancestors, files=files, **manifest).sealed()
        replace_file(content / MANIFEST, written.model_dump_json(indent=2))
        self.move_in(content, written.kind, name)
        return written

    def move_in(self, content: Path, kind: Kind, name: str) -> None:
        """Move a folder with its manifest to its place by one rename; what lies there is moved aside."""
        target = self.folder(kind, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in (*content.rglob("*"), content):
            sync(path)
        shell = is_pruned(target)
        aside = self._set_aside(target, "replaced") if target.exists() else None
        content.rename(target)
        sync(target.parent)
        if aside and shell:
            shutil.rmtree(aside)

    def ancestors(self, parents: Iterable[str]) -> dict[str, Ancestor]:
        """What is known of the folders of these names and of all that they were made from, by name."""
        found: dict[str, Ancestor] = {}
        for name in parents:
            path = self.locate(name)
            if path:
                manifest = read_manifest(path)
                found |= {name: manifest.as_ancestor()} | self.ancestors_of(manifest)
        return found

    def ancestors_of(self, manifest: Manifest) -> dict[str, Ancestor]:
        """All that a folder was made from, by name; where its manifest is of an early layout, its parents' tell."""
        return manifest.ancestors or self.ancestors(manifest.parents.values())

    def locate(self, name: str) -> Path | None:
        """The finished folder of that name, whatever it holds."""
        places = [self.folder(kind, name) for kind in FOLDERS]
        return next((path for path in places if (path / MANIFEST).exists()), None)

    def discard_partial(self, kind: Kind, name: str) -> None:
        """Remove what an unfinished folder has left behind."""
        shutil.rmtree(self.partial(kind, name), ignore_errors=True)

    @contextmanager
    def lock(self, kind: Kind, name: str, holder: str, waiting: Waiting) -> Iterator[None]:
        """Hold the right to make that folder; the system releases it when the holder dies.

        Args:
            kind: What the folder holds.
            name: The folder's name.
            holder: Who asks for it, as others that have to wait are told.
            waiting: Called where another one holds the right.

        Raises:
            Stopped: this process is to end while it waits.
        """
        name = f"{kind}-{name}"
        self._locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._locks / f"{name}.lock")
        if not _try(lock):
            held = self._holder(name)
            waiting(f"{'another task of this run' if held == holder else held}, which makes it")
            while not _try(lock):
                stop_if_closing()
                time.sleep(_SECONDS_BETWEEN_TRIES)
        try:
            with suppress(OSError):  # for others to read; on a full disk they do without
                (self._locks / f"{name}.holder").write_text(holder)
            yield
        finally:
            lock.release()

    @contextmanager
    def lock_if_free(self, kind: Kind, name: str) -> Iterator[bool]:
        """Hold the right to make that folder where nobody else does; yields whether it is held now."""
        lock = FileLock(self._locks / f"{kind}-{name}.lock")
        try:
            yield _try(lock)
        finally:
            lock.release()

    def is_locked(self, kind: Kind, name: str) -> bool:
        """Whether a process holds the right to make that folder; nothing is written to find out."""
        if not (self._locks / f"{kind}-{name}.lock").exists():
            return False
        with self.lock_if_free(kind, name) as free:
            return not free

    def _holder(self, name: str) -> str:
        """Who holds a lock, where it can be told."""
        path = self._locks / f"{name}.holder"
        return (path.exists() and path.read_text()) or "another process"

    def finished(self, kind: Kind) -> Iterator[tuple[str, os.stat_result]]:
        """The name of every finished folder of a kind, in no order, and what the system says of its manifest."""
        with suppress(OSError), os.scandir(self.folder(kind, "any").parent) as folders:
            for folder in folders:
                if not folder.name.startswith("."):
                    with suppress(OSError):  # none there, or just moved away
                        yield folder.name, os.stat(f"{folder.path}/{MANIFEST}")  # noqa: PTH116 - thrice as fast

    def newest_first(self, kind: Kind, wanted: Callable[[str], bool] = bool) -> list[Path]:
        """The finished folders of a kind whose names are wanted, by the time that they were made."""
        found = [(status.st_mtime_ns, name) for name, status in self.finished(kind) if wanted(name)]
        return [self.folder(kind, name) for _, name in sorted(found, reverse=True)]

    def manifests(self, kind: Kind) -> Iterator[tuple[Path, Manifest]]:
        """All finished folders of a kind with their manifests, newest first; unreadable ones are left out."""
        for path in self.newest_first(kind):
            if manifest := readable_manifest(path):
                yield path, manifest

    def _set_aside(self, path: Path, why: str) -> Path:
        """Move a finished folder out of the way, so that its place is free and it can still be looked at."""
        aside = path.parent / f".{why}" / f"{path.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        return path.rename(aside)


def read_manifest(path: Path) -> Manifest:
    """Read a finished folder's manifest.

    Raises:
        DamagedArtifact: it is missing or is not a manifest.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        raise DamagedArtifact(f"{path / MANIFEST}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        why = first["ctx"]["error"] if first["type"] == "value_error" else "its content is not a manifest"
        raise DamagedArtifact(f"{path / MANIFEST}: {why}") from None
    if manifest.schema_version > 1 and not manifest.digest:
        raise DamagedArtifact(f"{path / MANIFEST}: its digest is missing")
    return manifest


def readable_manifest(path: Path) -> Manifest | None:
    """A finished folder's manifest; none where it is missing or is not one."""
    try:
        return read_manifest(path)
    except DamagedArtifact:
        return None


def damage(path: Path, name: str = "") -> list[str]:
    """Compare every file with the manifest; one line per difference, none where the folder is whole.

    Files that were pruned are no difference: `tasks.pruned.is_pruned` tells.

    Args:
        path: The folder.
        name: The name that its fingerprint must end; default: the folder's own.
    """
    if not path.exists():
        return [f"{path.name}: not in this artifact root"]
    try:
        manifest, pruned = read_manifest(path), read_pruned(path)
    except DamagedArtifact as error:
        return [str(error)]
    named = (name or path.name).endswith(manifest.fingerprint[:ID_LENGTH])
    if not named or fingerprint(manifest.identity) != manifest.fingerprint:
        return [f"{path / MANIFEST}: identity, fingerprint and folder name do not belong together"]
    removed = (PRUNED, *pruned.files) if pruned else ()
    return differences(path, manifest.files, MANIFEST, *removed)


def utc_now() -> str:
    """The time in UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _try(lock: FileLock) -> bool:
    """Take a lock where nobody holds it."""
    with suppress(Timeout):
        lock.acquire(timeout=0)
    return lock.is_locked
