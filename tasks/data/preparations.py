"""Snapshots of sources: those that are there, those that wait to be published, and making others.

    datasets/.partial/source-<key>/   prepared rows that nobody has published yet, with `prepared.json` (written last)
    .cache/sources/<key>.json         what was found in a source whose snapshot was published

A key stands for files as they are and for what is asked of them, so that an unchanged source is not read again.
"""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from models.errors import InputError
from models.fingerprint import ID_LENGTH, fingerprint
from models.preparation import Prepared
from models.sources import DatasetSource
from tasks.data.conversion import Wanted
from tasks.data.fetching import fetched
from tasks.data.located import Located, key_of, locate
from tasks.data.mixing import mix
from tasks.data.preparing import Manner, prepare
from tasks.data.snapshot import ROWS, ROWS_BEFORE
from tasks.files import replace_file
from tasks.store import ArtifactStore

_FOUND = "prepared.json"


@dataclass(frozen=True)
class Ready:
    """The rows of a source, on disk."""

    prepared: Prepared
    """What they are."""
    folder: Path
    """Where they lie: a published snapshot or a folder that waits to become one."""
    located: tuple[Located, ...]
    """What they were made from."""
    key: str | None
    """What they are remembered under; none where it could not be told whether the source has changed."""
    published: bool
    """Whether the folder is a snapshot."""


@dataclass
class Preparations:
    """Finds or makes the rows of sources, in one artifact root."""

    home: Path
    """The artifact root; it may not exist."""
    manner: Manner = field(default_factory=Manner)
    """How sources are prepared."""
    _made: dict[Path, bool] = field(default_factory=dict)
    """Folders, and whether others find them."""

    def ready(self, source: DatasetSource, wanted: Wanted) -> Ready:
        """The source's rows, read now unless they are there.

        Raises:
            InputError: the source or some of its rows cannot be used.
            Killed, StageError, Stopped: see `tasks.data.preparing`.
        """
        located = locate(source)
        key = key_of(source, located, wanted)
        return (key and self._found(key, located)) or self._make(source, wanted, located, key)

    def make(self, source: DatasetSource, wanted: Wanted) -> Ready:
        """The source's rows, read now.

        Raises:
            InputError: the source or some of its rows cannot be used, or changed while it was read.
            Killed, StageError, Stopped: see `tasks.data.preparing`.
        """
        located = locate(source)
        return self._make(source, wanted, located, key_of(source, located, wanted))

    def _make(self, source: DatasetSource, wanted: Wanted, located: tuple[Located, ...], key: str | None) -> Ready:
        folder = self._new_folder()
        self._made[folder] = False
        prepared = self._prepare(source, located, wanted, folder)
        if key_of(source, locate(source), wanted) != key:
            raise InputError(f"{source.label}: it changed while it was read; run again when nobody writes to it")
        for leftover in folder.glob("*/"):
            shutil.rmtree(leftover)
        replace_file(folder / _FOUND, prepared.model_dump_json())
        return Ready(prepared, self._settle(folder, key), located, key, published=False)

    def _prepare(self, source: DatasetSource, located: tuple[Located, ...], wanted: Wanted, folder: Path) -> Prepared:
        files = [list(part.files) or [fetched(part, folder / f"hub-{number}")] for number, part in enumerate(located)]
        if source.mixture:
            return mix(source, files, wanted, folder, self.manner)
        return prepare(source, files[0], wanted, folder, self.manner)

    def note(self, ready: Ready) -> None:
        """Remember that the rows were published."""
        if ready.key:
            with suppress(OSError):  # for the next run to save time
                replace_file(self._note(ready.key), ready.prepared.model_dump_json())

    def discard(self, ready: Ready) -> None:
        """Remove rows that are not needed any more; a published snapshot stays."""
        if not ready.published:
            shutil.rmtree(ready.folder, ignore_errors=True)

    def discard_all(self, *, keep_waiting: bool = False) -> None:
        """Remove whatever was made here and not published, or of it only what nobody would find again."""
        for folder, waits in self._made.items():
            if not (waits and keep_waiting):
                shutil.rmtree(folder, ignore_errors=True)

    def _found(self, key: str, located: tuple[Located, ...]) -> Ready | None:
        noted = _read(self._note(key))
        if noted:
            name = fingerprint(noted.identity)[:ID_LENGTH]
            snapshot = ArtifactStore(self.home).folder("dataset", name)
            if (snapshot / ROWS).exists() or (snapshot / ROWS_BEFORE).exists():
                return Ready(noted, snapshot, located, key, published=True)
        waiting = self._waiting(key)
        if waiting.exists():
            prepared = _read(waiting / _FOUND)
            if prepared and (waiting / ROWS).exists():
                return Ready(prepared, waiting, located, key, published=False)
            shutil.rmtree(waiting, ignore_errors=True)  # nothing can be made of it, and it is in the way
        return None

    def _note(self, key: str) -> Path:
        return self.home / ".cache" / "sources" / f"{key}.json"

    def _waiting(self, key: str) -> Path:
        return ArtifactStore(self.home).partial("dataset", f"source-{key[:ID_LENGTH]}")

    def _new_folder(self) -> Path:
        """An empty folder in the artifact root, or in the system's temporary folder where that cannot be written to."""
        folder = ArtifactStore(self.home).partial("dataset", f"source-{secrets.token_hex(8)}")
        try:
            folder.mkdir(parents=True)
        except OSError:
            folder = Path(tempfile.mkdtemp())
        return folder

    def _settle(self, folder: Path, key: str | None) -> Path:
        """Move what was made to where others find it; where somebody was faster, it stays where it is."""
        if key is None or folder.parent != self._waiting(key).parent:
            return folder
        waiting = self._waiting(key)
        with suppress(OSError):
            folder.rename(waiting)
            self._made[waiting] = True
            return waiting
        return folder


def hand_over(ready: Ready, folder: Path) -> None:
    """Make the rows the beginning of a new folder, by one rename: what waits is whole or gone, whoever is killed.

    Args:
        ready: Rows that are not published.
        folder: Where they go; it does not exist.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    ready.folder.rename(folder)
    (folder / _FOUND).unlink()


def _read(file: Path) -> Prepared | None:
    with suppress(OSError, ValidationError):
        return Prepared.model_validate_json(file.read_bytes())
    return None


@contextmanager
def leaving_nothing(home: Path, manner: Manner, *, keep: bool) -> Iterator[Preparations]:
    """Preparations that are removed again, with the folders that they needed, unless all went well and they are kept.

    Args:
        home: The artifact root.
        manner: How sources are prepared.
        keep: Whether what is prepared is to wait for a run.
    """
    new = [ArtifactStore(home).partial("dataset", "x").parent, home / "datasets", home, *home.parents]
    new = [path for path in new if not path.exists()]
    preparations = Preparations(home, manner)
    done = False
    try:
        yield preparations
        done = True
    finally:
        preparations.discard_all(keep_waiting=done and keep)
        for path in new:
            with suppress(OSError):  # not empty: rows that wait, or somebody else's
                path.rmdir()
