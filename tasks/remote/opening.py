"""The artifact root of the settings, with its remote where there is one; only then a client is imported."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from settings.settings import Settings
from tasks.store import ArtifactStore

if TYPE_CHECKING:
    from tasks.remote.remote import Remote


def open_store(settings: Settings) -> ArtifactStore:
    """The artifact root, with its remote where the settings name one; nothing is asked of that yet.

    Raises:
        InputError: the remote's scheme is unknown, or its client is not installed.
    """
    if not settings.remote:
        return ArtifactStore(settings.home)
    remote = _remote(settings.remote, settings.remote_lease_seconds, settings.cache_bytes)
    return ArtifactStore(settings.home, remote)


def learn(store: ArtifactStore, telling: Callable[[str], None]) -> None:
    """Learn what the remote holds; where it does not answer, say so and go on with what is here.

    Raises:
        InputError: credentials are missing or wrong.
    """
    if store.remote:
        from tasks.remote.catalogue import refresh
        from tasks.remote.objects import Unreachable

        try:
            refresh(store, store.remote)
        except Unreachable as error:
            telling(f"{error}; what follows is of this machine alone")


def check_remote(settings: Settings) -> None:
    """Make sure that the remote can be used, and learn what it holds.

    Raises:
        InputError: it cannot be used; the message says why.
    """
    remote = open_store(settings).remote
    if remote:
        from models.errors import InputError
        from tasks.remote.catalogue import refresh
        from tasks.remote.objects import Unreachable

        try:
            remote.check()
            refresh(open_store(settings), remote)
        except Unreachable as error:
            remedy = "try again later, or unset ALIGN_REMOTE to work with what is here"
            raise InputError(f"ALIGN_REMOTE: {error}; {remedy}") from None


@cache
def _remote(url: str, lease_seconds: float, cache_bytes: int | None) -> "Remote":
    from tasks.remote.objects import ObjectStore
    from tasks.remote.remote import Remote

    return Remote(ObjectStore(url), lease_seconds, cache_bytes)
