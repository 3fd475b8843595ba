"""What lies in a remote: finished folders, and the trainer checkpoints of stages that are not finished.

base/<id>/  datasets/<id>/  evaluations/<id>/  checkpoints/<stage>-<id>/   finished: manifest.json was written last
unfinished/<kind>-<name>/checkpoint-<step>/                                whole: seal.json was written last
unfinished/<kind>-<name>/attempts.jsonl                                    the stage's ledger
runs/<id>/  aliases/<name>.json  decisions/<alias>/<checkpoint>.json       as in the artifact root
locks/<name>/<number>                                                      leases, see `tasks.remote.lease`
"""

import os
import secrets
import shutil
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from models.artifacts import Kind, Manifest
from models.errors import DamagedArtifact, InputError
from tasks.checkpoints import SEAL, TRAINER, Seal, last_whole_checkpoint, read_seal
from tasks.files import replace_file
from tasks.ledger import LEDGER
from tasks.pruned import is_pruned
from tasks.remote.folders import fetch_folder, remove_folder, send_folder
from tasks.remote.lease import Lease
from tasks.remote.objects import ObjectStore, Unreachable
from tasks.remote.uses import take
from tasks.store import FOLDERS, MANIFEST, ArtifactStore, damage, read_manifest

_OWNER = "remote-owner"
_KEPT = 2
"""Trainer checkpoints of a stage that stay there: with one alone, a damaged one would cost the whole stage."""


class Remote:
    """Finished and unfinished folders below one URL."""

    def __init__(self, objects: ObjectStore, lease_seconds: float, cache_bytes: int | None = None) -> None:
        """Prepare it; nothing is asked for yet.

        Args:
            objects: The objects below the URL.
            lease_seconds: A machine that has not been heard of for so long has lost what it was making.
            cache_bytes: What finished folders may take here; none: as much as there is.
        """
        self.objects = objects
        self.lease_seconds = lease_seconds
        self.cache_bytes = cache_bytes
        self._damaged: set[bytes] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return self.objects.url

    def check(self) -> None:
        """Make sure that it can be written to, and that of two writers at once it lets one alone succeed.

        Raises:
            InputError: credentials are missing or wrong, or the server knows no conditional writes.
            Unreachable: it does not answer.
        """
        key = f"locks/.check-{secrets.token_hex(8)}"
        try:
            first, second = (self.objects.create(key, b"check\n") for _ in range(2))
        except FileNotFoundError as error:
            raise InputError(f"ALIGN_REMOTE {self.url}: there is no such bucket ({error}); make it first") from None
        self.objects.remove(key)
        if not first or second:
            why = "it overwrites what `If-None-Match: *` protects, so that two machines could train the same stage"
            raise InputError(f"ALIGN_REMOTE {self.url}: the server cannot be used: {why}; take one that has it")

    def manifest(self, kind: Kind, name: str) -> Manifest | None:
        """The manifest of a finished folder there; none where there is none, or half of one."""
        found = self._manifest(kind, name)
        return found[0] if found else None

    def has(self, path: Path) -> bool:
        """Whether the very folder that lies here, or lay here before its files were removed, is safe there."""
        with suppress(DamagedArtifact, Unreachable):
            here = read_manifest(path)
            there = self._manifest(here.kind, path.name)
            return there is not None and there[0].digest == here.digest and there[1] not in self._damaged
        return False

    def fetch(self, store: ArtifactStore, kind: Kind, name: str) -> Manifest | None:
        """Bring a finished folder here by one rename, every byte compared with its manifest; none: it is not there.

        So it is where what arrives is damaged, for as long as this process lives. What lies there stays as it is, for
        the fault may be here: whoever makes the folder again replaces it.
        """
        found = self._manifest(kind, name)
        if not found or found[1] in self._damaged:
            return None
        manifest, content = found
        folder = store.partial(kind, f"{name}.fetched")
        try:
            fetch_folder(self.objects, _key(kind, name), manifest.files, folder)
            write_manifest(folder, content, manifest.created)
            _refuse_damage(folder, name)
        except DamagedArtifact:
            shutil.rmtree(folder, ignore_errors=True)
            self._damaged.add(content)
            return None
        take(store, kind, name)
        store.move_in(folder, kind, name)
        return manifest

    def send(self, store: ArtifactStore, kind: Kind, name: str, replace: bool = False) -> int:
        """Send a finished folder, its manifest last, unless it is there; returns the bytes that were sent.

        Args:
            store: Where it lies here, whole.
            kind: What it holds.
            name: Its name.
            replace: Whether it goes in place of another one that was made under the same name before.
        """
        path, there = store.folder(kind, name), self.manifest(kind, name)
        manifest = read_manifest(path)
        if is_pruned(path) or (there and (there.digest == manifest.digest or not replace)):
            return 0
        if there:
            self.objects.remove(f"{_key(kind, name)}/{MANIFEST}")
        return send_folder(self.objects, path, _key(kind, name), manifest.files, MANIFEST)

    def names(self, kind: Kind) -> list[str]:
        """The folders of a kind there, finished or being sent."""
        return [name for name in self.objects.names(FOLDERS[kind]) if not name.startswith(".")]

    def lease(self, store: ArtifactStore, name: str, holder: str) -> Lease:
        """A claim to a name for this artifact root."""
        told = f"{holder} on {socket.gethostname()}"
        return Lease(self.objects, name, _owner(store.home), told, self.lease_seconds)

    def send_unfinished(self, kind: Kind, name: str, workspace: Path) -> None:
        """Send the newest whole trainer checkpoint and the ledger of a stage that trains; older ones go.

        Args:
            kind: What the stage makes.
            name: Its name.
            workspace: The unfinished folder here.
        """
        key, there = _unfinished(kind, name), self._steps(kind, name)
        found = _newest_sealed(workspace / TRAINER)
        if found and found[1].step > max(there, default=-1):
            folder, whole = found
            with suppress(FileNotFoundError):  # the trainer has removed it meanwhile
                send_folder(self.objects, folder, f"{key}/{folder.name}", whole.files, SEAL)
                there.append(whole.step)
        if (workspace / LEDGER).exists():
            self.objects.write(f"{key}/{LEDGER}", (workspace / LEDGER).read_bytes())
        for step in sorted(there)[:-_KEPT]:
            remove_folder(self.objects, f"{key}/checkpoint-{step}", SEAL)

    def fetch_unfinished(self, kind: Kind, name: str, workspace: Path) -> None:
        """Bring the newest whole trainer checkpoint here, with the ledger, where it is further than what is here."""
        key, here = _unfinished(kind, name), last_whole_checkpoint(workspace / TRAINER)
        done = here[1].step if here else 0
        for step in sorted(self._steps(kind, name), reverse=True):
            with suppress(DamagedArtifact, FileNotFoundError, ValidationError):
                if step > done:
                    self._fetch_trainer_checkpoint(f"{key}/checkpoint-{step}", workspace)
                    return

    def steps_done(self, kind: Kind, name: str) -> Seal | None:
        """The seal of the newest trainer checkpoint there; none where there is none."""
        step = max(self._steps(kind, name), default=0)
        with suppress(FileNotFoundError, ValidationError):
            return Seal.model_validate_json(self.objects.read(f"{_unfinished(kind, name)}/checkpoint-{step}/{SEAL}"))
        return None

    def unfinished(self) -> set[tuple[str, str]]:
        """Kind and name of every stage of which something lies there that was sent while it was made."""
        found = (name.partition("-") for name in self.objects.names("unfinished"))
        return {(kind, name) for kind, _, name in found}

    def discard_unfinished(self, kind: Kind, name: str) -> None:
        """Remove what is there of a stage that is finished."""
        self.objects.remove(_unfinished(kind, name))

    def _manifest(self, kind: Kind, name: str) -> tuple[Manifest, bytes] | None:
        """A manifest there, and as it was written."""
        try:
            content = self.objects.read(f"{_key(kind, name)}/{MANIFEST}")
            return Manifest.model_validate_json(content), content
        except (FileNotFoundError, ValidationError):
            return None

    def _fetch_trainer_checkpoint(self, key: str, workspace: Path) -> None:
        content = self.objects.read(f"{key}/{SEAL}")
        folder = workspace / TRAINER / key.rpartition("/")[2]
        fetch_folder(self.objects, key, Seal.model_validate_json(content).files, folder)
        with suppress(FileNotFoundError):
            ledger = self.objects.read(f"{key.rpartition('/')[0]}/{LEDGER}").decode()
            replace_file(workspace / LEDGER, _merged(ledger, workspace / LEDGER))
        replace_file(folder / SEAL, content.decode())

    def _steps(self, kind: Kind, name: str) -> list[int]:
        """The steps of the whole trainer checkpoints of a stage."""
        seals = [key for key in self.objects.sizes(_unfinished(kind, name)) if key.endswith(f"/{SEAL}")]
        return [int(key.partition("/")[0].rpartition("-")[2]) for key in seals]


def _refuse_damage(folder: Path, name: str) -> None:
    if problems := damage(folder, name):
        raise DamagedArtifact(problems[0])


def write_manifest(folder: Path, content: bytes, created: str) -> None:
    """Write a manifest from elsewhere; its file is as old as the folder, since that is the order of lists."""
    replace_file(folder / MANIFEST, content.decode())
    seconds = datetime.fromisoformat(created).timestamp()
    os.utime(folder / MANIFEST, (seconds, seconds))


def _newest_sealed(trainer: Path) -> tuple[Path, Seal] | None:
    """The newest trainer checkpoint with a seal; its bytes are compared by whoever fetches it."""
    sealed = [(folder, found) for folder in trainer.glob("checkpoint-[0-9]*") if (found := read_seal(folder))]
    return max(sealed, key=lambda each: each[1].step, default=None)


def _merged(ledger: str, here: Path) -> str:
    """The attempts of another machine and of this one, each once."""
    own = here.read_text().splitlines() if here.exists() else []
    return "".join(f"{line}\n" for line in dict.fromkeys([*ledger.splitlines(), *own]))


def _owner(home: Path) -> str:
    """This artifact root on this machine, by a name that no other has."""
    path = home / ".locks" / _OWNER
    if not path.exists():
        replace_file(path, secrets.token_hex(8))
    return f"{socket.gethostname()}-{path.read_text()}"


def _key(kind: Kind, name: str) -> str:
    return f"{FOLDERS[kind]}/{name}"


def _unfinished(kind: Kind, name: str) -> str:
    return f"unfinished/{kind}-{name}"
