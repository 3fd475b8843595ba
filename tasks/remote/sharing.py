"""One stage at a time on all machines: its lease is renewed and its trainer checkpoints are sent while it is made."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.artifacts import Kind, Manifest
from models.errors import AlignError
from tasks.checkpoints import SEAL, TRAINER
from tasks.ledger import LEDGER
from tasks.pruned import is_pruned
from tasks.remote.cache import make_room
from tasks.remote.catalogue import send_run
from tasks.remote.objects import Unreachable
from tasks.remote.remote import Remote
from tasks.store import FOLDERS, MANIFEST, ArtifactStore, Waiting, damage

Telling = Callable[[str], None]
"""Told of what does not stop the stage."""
_RENEWALS = 3
"""While a lease would last."""
_SECONDS_BETWEEN_LOOKS = 2.0


@contextmanager
def sole_maker(
    store: ArtifactStore, remote: Remote, kind: Kind, name: str, holder: str, waiting: Waiting
) -> Iterator[Callable[[], None]]:
    """Hold the right to make a folder among all machines, and keep the remote's trainer checkpoints up to date.

    What another machine has trained of it is fetched first.

    Args:
        store: The artifact root here; the caller holds its own lock.
        remote: What the machines share.
        kind: What is made.
        name: Its name.
        holder: Who asks for it, as others that have to wait are told.
        waiting: Called where another machine holds the right.

    Yields:
        A function to be called now and then: it raises `StageError` where the right was lost.

    Raises:
        Stopped: this process is to end while it waits.
    """
    lease, workspace = remote.lease(store, f"{kind}-{name}", holder), store.partial(kind, name)
    lease.acquire(waiting)
    ended, sent = threading.Event(), [_standing(workspace)]

    def send() -> None:
        standing = _standing(workspace)
        if standing != sent[0]:
            remote.send_unfinished(kind, name, workspace)
            sent[0] = standing

    jobs = ((lease.renew, remote.lease_seconds / _RENEWALS), (send, _SECONDS_BETWEEN_LOOKS))
    renewing, sending = (threading.Thread(target=_repeat, args=(*job, ended), daemon=True) for job in jobs)
    try:
        renewing.start()
        remote.fetch_unfinished(kind, name, workspace)  # which may take longer than a lease lasts
        sending.start()
        yield lease.check
    finally:
        ended.set()
        for thread in (renewing, sending):
            if thread.is_alive():
                thread.join()
        if workspace.exists():
            with suppress(AlignError, OSError):
                lease.check()
                send()
        lease.release()


def keep_safe(
    store: ArtifactStore, remote: Remote, kind: Kind, name: str, telling: Telling, is_new: bool = True
) -> None:
    """Send a folder, a new one in place of what is there; where that fails, it stays here and the next run sends it."""
    try:
        remote.send(store, kind, name, replace=is_new)
        _discard_unfinished(store, remote, kind, name)
        make_room(store, remote)
    except AlignError as error:
        telling(f"{name} is kept here and will be sent by the next run: {error}")


def fetch_if_there(store: ArtifactStore, remote: Remote, kind: Kind, name: str, telling: Telling) -> Manifest | None:
    """Fetch a finished folder whose lock the caller holds; none where it is not there or the remote does not answer."""
    try:
        return remote.fetch(store, kind, name)
    except Unreachable as error:
        telling(f"{name} is not looked for in the remote: {error}")
        return None


def share_run(store: ArtifactStore, name: str, telling: Telling) -> None:
    """At the end of a run, send its record and report, and what else is not in the remote, where there is one."""
    if store.remote:
        try:
            send_missing(store, store.remote)
            send_run(store, store.remote, name)
            make_room(store, store.remote)
        except AlignError as error:
            telling(f"not all is in the remote; the next run sends what is missing: {error}")


def send_missing(store: ArtifactStore, remote: Remote) -> None:
    """Send every finished folder that the remote lacks: what earlier runs could not send, or made without it."""
    left = remote.unfinished()
    for kind in FOLDERS:
        there = remote.objects.sizes(FOLDERS[kind])
        for path, _ in store.manifests(kind):
            is_there = there.get(f"{path.name}/{MANIFEST}") == (path / MANIFEST).stat().st_size
            if not is_there and not is_pruned(path) and not damage(path):
                remote.send(store, kind, path.name)
            if (kind, path.name) in left:
                with store.lock_if_free(kind, path.name) as free:
                    if free:
                        _discard_unfinished(store, remote, kind, path.name)


def _discard_unfinished(store: ArtifactStore, remote: Remote, kind: Kind, name: str) -> None:
    """Once a folder is safe there, what was sent while it was made goes, or a forced training would go on from it.

    It stays where another machine is making the folder anew right now. The caller holds the folder's lock here.
    """
    is_left = (kind, name) in remote.unfinished()
    if is_left and remote.has(store.folder(kind, name)) and remote.lease(store, f"{kind}-{name}", "").is_free():
        remote.discard_unfinished(kind, name)


def _standing(workspace: Path) -> dict[str, float]:
    """What there is of a stage to send, and since when."""
    files = (*workspace.glob(f"{TRAINER}/*/{SEAL}"), *workspace.glob(LEDGER))
    return {str(path): path.stat().st_mtime for path in files}


def _repeat(job: Callable[[], None], seconds: float, ended: threading.Event) -> None:
    """Do something every so often; what fails is done the next time, and told of where it matters."""
    while not ended.wait(seconds):
        with suppress(AlignError, OSError):
            job()
