"""Which finished folders are taken, and when they last were: this decides whose files stay on this machine.

A process holds what it takes until it ends. However it does, the system lets go of its locks.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.artifacts import Kind
from tasks.store import MANIFEST, ArtifactStore

_held: dict[Path, int] = {}
"""What this process has taken: its lock, open."""


def take(store: ArtifactStore, kind: Kind, name: str) -> None:
    """Keep the files of a finished folder here until this process ends, where they could go: where there is a remote.

    To be called before they are looked for. Any number of processes may take a folder.
    """
    if not store.remote:
        return
    mark, lock = _mark(store, kind, name), _lock(store, kind, name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    if lock not in _held:
        file = _open(lock)
        fcntl.flock(file, fcntl.LOCK_SH)
        if _held.setdefault(lock, file) != file:  # another thread was faster
            os.close(file)


@contextmanager
def unless_taken(store: ArtifactStore, kind: Kind, name: str) -> Iterator[bool]:
    """Let nobody take a folder meanwhile; yields whether nobody has."""
    file = _open(_lock(store, kind, name))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(file)


def last_use(store: ArtifactStore, kind: Kind, name: str) -> float:
    """When a finished folder was last taken, or else made: seconds since 1970."""
    mark = _mark(store, kind, name)
    return (mark if mark.exists() else store.folder(kind, name) / MANIFEST).stat().st_mtime


def _open(lock: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT)


def _lock(store: ArtifactStore, kind: Kind, name: str) -> Path:
    return store.home / ".locks" / f"{kind}-{name}.taken"


def _mark(store: ArtifactStore, kind: Kind, name: str) -> Path:
    return store.home / ".cache" / "used" / f"{kind}-{name}"
