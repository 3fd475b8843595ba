"""What other machines have made and decided, known here: manifests, aliases, decisions, completed runs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from models.artifacts import Kind, Manifest, Pruned
from models.run import RunRecord
from tasks.aliases import changing
from tasks.files import replace_file
from tasks.pruned import mark_pruned
from tasks.remote.lease import Lease
from tasks.remote.remote import Remote, write_manifest
from tasks.run_record import RECORD
from tasks.store import FOLDERS, MANIFEST, ArtifactStore, Waiting, utc_now


def refresh(store: ArtifactStore, remote: Remote) -> None:
    """Learn of every folder, alias, decision and completed run that is in the remote; the folders' files stay there.

    A folder whose files are not here is marked as one that was pruned: what needs it fetches it.
    """
    for kind in FOLDERS:
        here = {name for name, _ in store.finished(kind)}
        keys = {f"{FOLDERS[kind]}/{name}/{MANIFEST}": name for name in remote.names(kind) if name not in here}
        for key, content in remote.objects.read_all(list(keys)).items():
            _note_folder(store, remote, kind, keys[key], content)
    _refresh_aliases(store, remote)
    _refresh_runs(store, remote)


def send_run(store: ArtifactStore, remote: Remote, name: str) -> None:
    """Send the record and the report of a completed run, the record last."""
    folder = store.home / "runs" / name
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.name == RECORD):
        remote.objects.write(f"runs/{name}/{path.name}", path.read_bytes())


@contextmanager
def changing_alias(store: ArtifactStore, name: str, holder: str, waiting: Waiting) -> Iterator[None]:
    """Hold the right to change an alias and what was decided about it, on all machines that share the remote.

    What others have changed is brought here first, and what is changed here is sent at the end; where that fails, it is
    put back.

    Raises:
        StageError: the remote does not answer, or the right was lost; nothing is changed here.
    """
    with changing(store.home, name):
        if not store.remote:
            yield
            return
        lease = store.remote.lease(store, f"alias-{name}", holder)
        lease.acquire(waiting)
        try:
            _bring(store, store.remote, [f"aliases/{name}.json", *_decisions(store.remote, name)])
            before = _about(store, name)
            try:
                yield
                _send_changes(store, name, before, store.remote, lease)
            except BaseException:
                _put_back(store, name, before)
                raise
        finally:
            lease.release()


def _send_changes(store: ArtifactStore, alias: str, before: dict[str, bytes], remote: Remote, lease: Lease) -> None:
    """Send what has changed about an alias, the alias first: what was decided may be put on file again."""
    changed = {key: content for key, content in _about(store, alias).items() if content != before.get(key)}
    if changed:
        lease.check()
    for key, content in changed.items():
        remote.objects.write(key, content)


def _put_back(store: ArtifactStore, alias: str, before: dict[str, bytes]) -> None:
    """Make an alias and the decisions about it what they were."""
    for key, content in _about(store, alias).items():
        if key not in before:
            (store.home / key).unlink()
        elif content != before[key]:
            replace_file(store.home / key, before[key].decode())


def _note_folder(store: ArtifactStore, remote: Remote, kind: Kind, name: str, content: bytes) -> None:
    """Put a manifest here, with a mark that the files are elsewhere, by one rename."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:  # half of one: it is being written, or its writer died
        return
    folder = store.partial(kind, f"{name}.noted")
    with store.lock_if_free(kind, name) as free:
        if not free or store.folder(kind, name).exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        write_manifest(folder, content, manifest.created)
        if manifest.files:
            names = tuple(entry.path for entry in manifest.files)
            mark_pruned(folder, Pruned(files=names, when=utc_now(), why=f"it is in {remote.url}"))
        store.move_in(folder, kind, name)


def _refresh_aliases(store: ArtifactStore, remote: Remote) -> None:
    keys = [f"aliases/{name}" for name in remote.objects.names("aliases") if name.endswith(".json")]
    decided = [key for alias in remote.objects.names("decisions") for key in _decisions(remote, alias)]
    _bring(store, remote, [*keys, *decided])


def _decisions(remote: Remote, alias: str) -> list[str]:
    """What lies in the remote of decisions about an alias."""
    folder = f"decisions/{alias}"
    return [f"{folder}/{name}" for name in remote.objects.names(folder) if name.endswith(".json")]


def _about(store: ArtifactStore, alias: str) -> dict[str, bytes]:
    """An alias and the decisions about it, as they are here."""
    paths = [store.home / "aliases" / f"{alias}.json", *store.home.glob(f"decisions/{alias}/[!.]*.json")]
    return {path.relative_to(store.home).as_posix(): path.read_bytes() for path in paths if path.exists()}


def _bring(store: ArtifactStore, remote: Remote, keys: list[str]) -> None:
    """Write files of the remote that are other ones here, or not here."""
    for key, content in remote.objects.read_all(keys).items():
        path = store.home / key
        if not path.exists() or path.read_bytes() != content:
            replace_file(path, content.decode())


def _refresh_runs(store: ArtifactStore, remote: Remote) -> None:
    runs = store.home / "runs"
    for name in remote.objects.names("runs"):
        if not (runs / name / RECORD).exists():
            files = remote.objects.read_all([f"runs/{name}/{file}" for file in remote.objects.names(f"runs/{name}")])
            record = _moved(files.pop(f"runs/{name}/{RECORD}", b""), store.home)
            if record:
                for key, content in files.items():
                    replace_file(store.home / key, content.decode())
                replace_file(runs / name / RECORD, record)


def _moved(content: bytes, home: Path) -> str:
    """A run's record with the paths of this artifact root in place of those of the one that it comes from.

    Empty where this version cannot read it: it is none, or of a newer version.
    """
    try:
        record = RunRecord.model_validate_json(content)
    except ValidationError:
        return ""
    text = content.decode()
    if not record.report:
        return text
    before, now = (json.dumps(f"{place}/")[1:-1] for place in (record.report.parents[2], home))
    return text.replace(before, now)
