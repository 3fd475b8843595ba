"""Find or make: the one mechanism behind cache, sharing between runs, resume and lineage.

A finished folder under the fingerprint of what is asked for is taken, an unfinished one is continued, a pruned one is
rebuilt where its adapter and parent give it back, and one process at a time makes it. Prefect shows what was taken as
`Cached`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from prefect.states import Completed

from models.artifacts import Kind, Manifest
from models.contract import Contract
from models.errors import DamagedArtifact, InputError
from models.launch import Launch
from tasks.child_main import ChildOptions
from tasks.execution import Execution
from tasks.files import explaining_a_full_disk
from tasks.ledger import read_attempts
from tasks.provenance import version_changes
from tasks.pruned import is_pruned
from tasks.queue import Queue
from tasks.remote.opening import open_store
from tasks.remote.sharing import fetch_if_there, keep_safe, sole_maker
from tasks.remote.uses import take
from tasks.restoring import restore_held
from tasks.store import ArtifactStore, Waiting, read_manifest
from tasks.telling import Teller

Made = TypeVar("Made", bound=Contract)


def find_or_make(
    kind: Kind,
    name: str,
    execution: Execution,
    make: Callable[[ArtifactStore, Teller, ChildOptions], Manifest],
    read: Callable[[Path, Manifest], Made],
    title: str = "",
) -> Made:
    """Take the finished folder of that name, or make and publish it.

    A checkpoint of a stage that the run is to force, or its evaluation, is made anew, unless this very run has made it.

    Args:
        kind: What the folder holds.
        name: Its name, which ends in the fingerprint's beginning.
        execution: The machine's part.
        make: Makes and publishes the folder; called once it is this stage's turn to compute on the machine.
        read: Turns the finished folder and its manifest into what the task returns.
        title: What people know it as; default: the name.

    Returns:
        What `read` gives; within a Prefect state named `Cached` where the folder was there, so call tasks by `submit`.
    """
    store, teller = open_store(execution.settings), Teller(title or name)
    path = store.folder(kind, name)
    wanted = _Wanted(kind, name, _is_forced(name, title, execution), execution, store, teller)
    with (
        explaining_a_full_disk(store.home),
        store.lock(kind, name, wanted.holder, teller.waiting),
        ExitStack() as alone,
    ):
        take(store, kind, name)
        pruned = read_manifest(path) if is_pruned(path) else None
        found = wanted.look()
        if store.remote and not wanted.serves(found):
            sole = sole_maker(store, store.remote, kind, name, wanted.holder, teller.waiting)
            teller.checking = alone.enter_context(sole)
            found = wanted.look()  # another machine may have made it meanwhile
        if found and wanted.serves(found):
            return _taken(wanted, found, read)
        with _turn(kind, teller.name, execution, teller.waiting) as options, teller.failing():
            made = make(store, teller, options)
        if store.remote:
            teller.checking()
            keep_safe(store, store.remote, kind, name, teller.warn)
        teller.completed(path, made, found or pruned)
        return read(path, made)


@dataclass(frozen=True)
class _Wanted:
    """A folder that is asked for, and where it may be found."""

    kind: Kind
    name: str
    forced: bool
    """Whether one that this run has not made does not serve."""
    execution: Execution
    store: ArtifactStore
    teller: Teller

    @property
    def holder(self) -> str:
        """Who asks for it, as others that have to wait are told."""
        return f"run {self.execution.run} (process {os.getpid()})"

    def look(self) -> Manifest | None:
        """The finished folder's manifest; it is fetched or rebuilt first where that may serve."""
        store, kind, name = self.store, self.kind, self.name
        found = store.find(kind, name)
        if not found and not self.forced and store.remote:
            found = fetch_if_there(store, store.remote, kind, name, self.teller.warn)
        if not found and not self.forced:
            found = _rebuilt(self)
        if found and read_attempts(store.partial(kind, name)) == found.attempts:
            store.discard_partial(kind, name)  # its maker died between publishing and clearing up
        return found

    def serves(self, found: Manifest | None) -> bool:
        """Whether what was found is taken; what is forced is where this very run has made it."""
        return bool(found and (found.run == self.execution.run or not self.forced))


def _taken(wanted: _Wanted, found: Manifest, read: Callable[[Path, Manifest], Made]) -> Made:
    """What `read` gives of a folder that is there, in a state that Prefect shows as `Cached`."""
    store, kind, name, teller = wanted.store, wanted.kind, wanted.name, wanted.teller
    path = store.folder(kind, name)
    if store.remote:
        keep_safe(store, store.remote, kind, name, teller.warn, is_new=False)
    teller.cached(path, found, version_changes(found.versions))
    return cast(Made, Completed(name="Cached", data=read(path, found), message=f"{path.name} is there already"))


def _rebuilt(wanted: _Wanted) -> Manifest | None:
    """Make a pruned folder whole, where that is possible without training it again; a merge takes one process."""
    store, teller = wanted.store, wanted.teller
    path = store.folder(wanted.kind, wanted.name)
    if not is_pruned(path):
        return None
    alone = wanted.execution.model_copy(update={"launch": Launch()})
    computing = partial(_turn, "checkpoint", teller.name, alone, teller.waiting)
    try:
        restore_held(store, path, wanted.holder, computing, lambda doing: teller.report({"phase": doing}))
    except (InputError, DamagedArtifact) as error:
        teller.report({"phase": str(error)})
        return None
    manifest = read_manifest(path)
    return store.find(manifest.kind, path.name)


@contextmanager
def _turn(kind: Kind, name: str, execution: Execution, waiting: Waiting) -> Iterator[ChildOptions]:
    """Hold a share of the machine; freezing a dataset's rows needs none."""
    if kind == "dataset":
        yield ChildOptions.of(execution, (0,))
        return
    with Queue(execution.settings.queue).turn(execution.run, name, execution.share, waiting) as places:
        yield ChildOptions.of(execution, places)


def _is_forced(name: str, title: str, execution: Execution) -> bool:
    """A checkpoint of a stage to force, or its evaluation: `dpo-0123…`, `evaluation-of-dpo-0123…`."""
    stage = (title or name).removeprefix("evaluation-of-").partition("-")[0]
    return stage in execution.force
