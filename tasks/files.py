"""Files that are whole or not there: written by one rename, listed with size and digest, and compared again later."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from models.artifacts import FileEntry
from models.errors import StageError

_UNFINISHED = ".unfinished"
"""Ending of a file that a crash has kept from being written whole."""
_NO_SPACE = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing")
"""How libraries that do not raise an `OSError` say that a disk is full, in lower case."""


def replace_file(path: Path, text: str) -> None:
    """Write a file whole: whoever reads it, also after a crash, finds the old content or the new, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what processes that died while they wrote have left in a folder that nobody else writes to."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path, *leave_out: str) -> tuple[FileEntry, ...]:
    """Size and digest of every file but those named `leave_out`, sorted by path; files are read in parallel."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != _UNFINISHED)
    left_out = {folder / name for name in leave_out}
    paths = sorted(path for path in files if path not in left_out)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_digest, paths))
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )


def differences(folder: Path, listed: Iterable[FileEntry], *leave_out: str) -> list[str]:
    """Compare a folder's files with a list of them; one line per file that is missing, not listed, or changed."""
    expected = {entry.path: entry for entry in listed if entry.path not in leave_out}
    present = {entry.path: entry for entry in list_files(folder, *leave_out)}
    missing = [f"{folder / name}: missing" for name in expected.keys() - present.keys()]
    extra = [f"{folder / name}: not in the manifest" for name in present.keys() - expected.keys()]
    changed = [
        f"{folder / name}: {present[name].size_bytes} bytes, sha256 {present[name].sha256[:12]}…; the manifest has "
        f"{expected[name].size_bytes} bytes, {expected[name].sha256[:12]}…"
        for name in expected.keys() & present.keys()
        if present[name] != expected[name]
    ]
    return sorted(missing + extra + changed)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explaining_a_full_disk(place: Path) -> Iterator[None]:
    """Turn whatever a library says of a full disk into one message; other errors go on their way.

    Args:
        place: A folder on the disk that is written to.

    Raises:
        StageError: the disk, or what a quota allows of it, is full.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, StageError) and is_disk_full(error):
            remedy = "free space, or set ALIGN_HOME to another disk, and run again; what was trained is kept"
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise StageError(f"the disk of {place} is full ({said}); {remedy}") from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that a disk, or what a quota allows of it, is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(message in str(error).lower() for message in _NO_SPACE)
