"""Requests to an object store through fsspec: tried again where that may help, with errors that people understand."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from models.errors import InputError, StageError
from tasks.closing import stop_if_closing

Answer = TypeVar("Answer")

EXTRAS = {"s3": "s3", "gs": "gs", "az": "az", "abfs": "az", "file": ""}
"""The schemes of a remote, each with the extra that installs its client."""
_WAITS_SECONDS = (1.0, 2.0, 4.0)
"""Between tries, on top of those that the clients make by themselves."""
_CLIENT_TRIES = 2
"""Those of S3's client, which else asks five times five times."""
_UNCACHED = {"use_listings_cache": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": _UNCACHED | {"config_kwargs": {"retries": {"total_max_attempts": 1}}},
    "gs": _UNCACHED,
    "az": _UNCACHED,
    "abfs": _UNCACHED,
    "file": {},
}
"""Of the clients: what lies there is asked for each time."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "": "permissions of the folder",
}
"""What names them, by the client's extra."""


class Unreachable(StageError):
    """The remote did not answer, however often it was asked."""


class ObjectStore:
    """The objects below one URL. Keys are relative to it, with forward slashes."""

    def __init__(self, url: str) -> None:
        """Prepare the client; nothing is sent yet.

        Raises:
            InputError: the scheme is unknown, or its client is not installed.
        """
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        if scheme not in EXTRAS:
            raise InputError(f"ALIGN_REMOTE: '{url}' has no known scheme; use s3://, gs://, az:// or file://")
        from fsspec.core import url_to_fs

        try:
            self._fs, path = url_to_fs(self.url, skip_instance_cache=True, **_OPTIONS[scheme])
        except ImportError:
            remedy = f"run `pip install 'alignment-pipeline[{EXTRAS[scheme]}]'`"
            raise InputError(f"ALIGN_REMOTE: the client for {scheme}:// is not installed; {remedy}") from None
        self._root = path.rstrip("/")
        self._local = scheme == "file"
        self._credentials = _CREDENTIALS[EXTRAS[scheme]]
        if scheme == "s3":
            self._fs.retries = _CLIENT_TRIES

    def read(self, key: str) -> bytes:
        """An object's content.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(self._ask(lambda: self._fs.cat_file(self._path(key))))

    def read_all(self, keys: list[str]) -> dict[str, bytes]:
        """The content of many objects at once, by key; those that have just gone are left out."""
        paths = {self._path(key): key for key in keys}
        found = self._ask(lambda: self._read_there(list(paths))) if paths else {}
        return {paths[path]: content for path, content in found.items()}

    def write(self, key: str, content: bytes) -> None:
        """Write an object in place of what was there."""
        self._make_room(key)
        self._ask(lambda: self._fs.pipe_file(self._path(key), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one of that key; of several at once, one alone succeeds.

        Returns:
            Whether it was written.
        """
        try:
            self._ask(lambda: self._create(self._path(key), content))
        except FileExistsError:
            return False
        return True

    def send(self, path: Path, key: str) -> None:
        """Copy a file there, large ones in parts."""
        self._make_room(key)
        self._ask(lambda: self._fs.put_file(str(path), self._path(key)))

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object here.

        Raises:
            FileNotFoundError: there is none.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ask(lambda: self._fs.get_file(self._path(key), str(path)))

    def sizes(self, key: str) -> dict[str, int]:
        """The size in bytes of every object below a key, by key relative to it."""
        start = self._path(key)
        found = self._ask(lambda: self._fs.find(start, detail=True))
        return {str(path).removeprefix(f"{start}/"): int(told["size"]) for path, told in found.items()}

    def names(self, key: str) -> list[str]:
        """What lies directly below a key, by name."""
        try:
            found = self._ask(lambda: self._fs.ls(self._path(key), detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def modified(self, key: str) -> datetime:
        """When an object was last written, by the server's clock.

        Raises:
            FileNotFoundError: there is none.
        """
        written: datetime = self._ask(lambda: self._fs.modified(self._path(key)))
        return written

    def remove(self, key: str) -> None:
        """Remove an object, or all that lies below a key."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._fs.rm(self._path(key), recursive=True))

    def _read_there(self, paths: list[str]) -> dict[str, bytes]:
        """The content of what is there of many paths, at once; any other failure than that one is not is raised."""
        answers = self._fs.cat(paths, on_error="return")
        found = {path: answer for path, answer in answers.items() if not isinstance(answer, FileNotFoundError)}
        for failure in found.values():
            if isinstance(failure, Exception):
                raise failure
        return found

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _create(self, path: str, content: bytes) -> None:
        if not self._local:
            self._fs.pipe_file(path, content, mode="create")
            return
        unfinished = Path(f"{path}.{os.urandom(8).hex()}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        try:
            os.link(unfinished, path)  # unlike a rename, it fails where there is one
        finally:
            unfinished.unlink()

    def _make_room(self, key: str) -> None:
        if self._local:
            Path(self._path(key)).parent.mkdir(parents=True, exist_ok=True)

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """Carry a request out, and again after a while where the server may answer then."""
        for wait in (*_WAITS_SECONDS, None):
            try:
                return request()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:
                if problem := self._refusal(error):
                    raise InputError(problem) from None
                if wait is None or _is_local_fault(error):
                    raise Unreachable(f"{self.url} does not answer ({type(error).__name__}: {error})") from error
                stop_if_closing()
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _refusal(self, error: Exception) -> str:
        """What to say where asking again would not help."""
        what = f"ALIGN_REMOTE {self.url}"
        if self._local and isinstance(error, PermissionError | NotADirectoryError):
            return f"{what}: not writable for you ({error}); set it to another place"
        if isinstance(error, PermissionError):
            return f"{what}: the server refuses these credentials ({error}); put them right, or ask for access"
        if "Credential" in type(error).__name__:
            remedy = f"set them as its own tools read them, such as {self._credentials}"
            return f"{what}: no credentials ({error}); {remedy}"
        return ""


def _is_local_fault(error: Exception) -> bool:
    """Whether this machine's disk is at fault, not the server."""
    from tasks.files import is_disk_full

    return is_disk_full(error)
