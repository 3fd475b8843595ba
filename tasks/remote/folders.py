"""Folders that count once their list of files is there: a manifest, or the seal of a trainer checkpoint.

Object stores know no rename, so the list goes last. A folder that was cut off while it was sent goes on with the files
that are missing: beside each file that arrived lies a mark with its digest, until the list is there.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from models.artifacts import FileEntry
from models.errors import DamagedArtifact
from tasks.files import file_digest
from tasks.remote.objects import ObjectStore

_SENT = ".sent"
_TRIES = 2


def send_folder(objects: ObjectStore, folder: Path, key: str, files: Iterable[FileEntry], listing: str) -> int:
    """Send a folder's files, then the file that lists them.

    Args:
        objects: Where to.
        folder: The folder.
        key: Where it goes.
        files: What the list tells of.
        listing: Name of the file that lists them.

    Returns:
        Bytes that were sent; what was there already is not sent again.
    """
    there, sent = objects.sizes(key), 0
    for entry in files:
        mark = f"{_SENT}/{_digest_of(entry)}"
        if mark not in there or there.get(entry.path) != entry.size_bytes:
            objects.send(folder / entry.path, f"{key}/{entry.path}")
            objects.write(f"{key}/{mark}", b"sent\n")
            sent += entry.size_bytes
    objects.write(f"{key}/{listing}", (folder / listing).read_bytes())
    objects.remove(f"{key}/{_SENT}")
    return sent


def fetch_folder(objects: ObjectStore, key: str, files: Iterable[FileEntry], folder: Path) -> None:
    """Fetch files and compare each with its digest; what is here already stays.

    Raises:
        DamagedArtifact: an object is missing, or not what the list says, also when it is fetched again.
    """
    for entry in files:
        if not _is_whole(folder / entry.path, entry):
            _fetch(objects, f"{key}/{entry.path}", folder / entry.path, entry)


def remove_folder(objects: ObjectStore, key: str, listing: str) -> None:
    """Remove a folder, its list first, so that half of it counts for nothing."""
    objects.remove(f"{key}/{listing}")
    objects.remove(key)


def _fetch(objects: ObjectStore, key: str, path: Path, entry: FileEntry) -> None:
    for _ in range(_TRIES):
        try:
            objects.fetch(key, path)
        except FileNotFoundError:
            raise DamagedArtifact(f"{objects.url}/{key}: missing") from None
        if _is_whole(path, entry):
            return
    path.unlink()
    raise DamagedArtifact(f"{objects.url}/{key}: its content is not what the list of its folder says")


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes and file_digest(path) == entry.sha256


def _digest_of(entry: FileEntry) -> str:
    """One name for a file's path and content."""
    return hashlib.sha256(f"{entry.path}\n{entry.sha256}".encode()).hexdigest()
