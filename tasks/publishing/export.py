"""A checkpoint as a folder for others: weights, model card, bill of materials, lineage and digests.

The folder is built beside its place and appears there whole, by one rename. `export.json` lists every file with its
digest; `model.sig`, where the folder is signed, covers that as well.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.artifacts import Manifest
from models.errors import DamagedArtifact, InputError, StageError
from models.publishing import Dossier, Export, ExportRequest
from tasks.child_main import ChildOptions
from tasks.code_version import code_version
from tasks.files import differences, is_disk_full, list_files, replace_file, sync
from tasks.pruned import is_pruned
from tasks.publishing.bom import bill_of_materials
from tasks.publishing.card import model_card
from tasks.publishing.dossier import gather
from tasks.publishing.signing import SIGNATURE, UNSIGNED, check_signing, sign
from tasks.publishing.weights import write_weights
from tasks.store import MANIFEST, ArtifactStore, damage, read_manifest, utc_now

RECORD = "export.json"
LINEAGE = "lineage.json"
BOM = "bom.cdx.json"
CARD = "README.md"
_LOCK = "lock"

Tell = Callable[[str], None]
"""Gets what is being done, a few words at a time."""


def export(
    store: ArtifactStore, path: Path, folder: Path, request: ExportRequest, options: ChildOptions, tell: Tell
) -> Export:
    """Write a checkpoint to `folder` for others.

    Args:
        store: The artifact root.
        path: The checkpoint's folder, as `tasks.finding.resolve` finds it.
        folder: Must not exist, or be empty.
        request: What to write.
        options: Threads and limits of the process that converts weights.
        tell: Gets progress.

    Raises:
        InputError: what was asked for cannot be; nothing was written.
        DamagedArtifact: the checkpoint does not agree with its manifest; nothing was written.
        StageError: what was written differs from the checkpoint, or the disk is full; nothing was left.
    """
    target = free_place(folder, store.home)
    if request.sign:
        check_signing(request.sign)
    tell("verifying")
    if damaged := damage(path):
        raise DamagedArtifact(f"{damaged[0]}; run its recipe again to make it anew")
    if is_pruned(path):
        raise InputError(f"{path.name} was pruned: its files are gone; run its recipe again to make it anew")
    dossier = gather(store, path.name, read_manifest(path))
    with _appearing_whole(target) as unfinished:
        return _write(path, dossier, unfinished, request, options, tell)


def free_place(folder: Path, home: Path) -> Path:
    """The absolute path of a folder to be made.

    Raises:
        InputError: something is there, or it would lie in the artifact root.
    """
    target = folder.expanduser().absolute().resolve()
    if target.is_relative_to(home.resolve()):
        raise InputError(f"{folder}: lies in the artifact root {home}, whose folders never change; name another place")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        what = "is not empty" if target.is_dir() else "is a file"
        raise InputError(f"{folder}: {what}; an export needs a new folder: name another, or remove this one")
    return target


def read_export(folder: Path) -> Export | None:
    """The record of an exported folder; none where the folder is no such thing.

    Raises:
        DamagedArtifact: the record cannot be read.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        return Export.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        raise DamagedArtifact(f"{folder / RECORD}: its content is not an export's; export again") from None


def export_damage(folder: Path, export: Export) -> list[str]:
    """Compare an exported folder's files with its record; one line per difference.

    What a hub's or git's copy has beside them is left out.
    """
    beside = {str(folder / name) for name in (SIGNATURE, *UNSIGNED)}
    lines = differences(folder, export.files, RECORD)
    return [line for line in lines if not any(line.startswith((f"{name}:", f"{name}/")) for name in beside)]


def _write(
    path: Path, dossier: Dossier, folder: Path, request: ExportRequest, options: ChildOptions, tell: Tell
) -> Export:
    written = write_weights(path, dossier, folder, request, options, tell)
    tell("writing the card")
    replace_file(folder / LINEAGE, (path / MANIFEST).read_text(encoding="utf-8"))
    record = Export(
        source=dossier.title,
        fingerprint=dossier.manifest.fingerprint,
        weights=request.weights,
        licensing=dossier.licensing,
        code=code_version(),
        created=utc_now(),
        files=list_files(folder, RECORD),
        **written.model_dump(),
    )
    _refuse_miscopied(record, dossier.manifest)
    replace_file(folder / CARD, model_card(dossier, record))
    bom = bill_of_materials(dossier, record.model_copy(update={"files": list_files(folder, RECORD)}))
    replace_file(folder / BOM, json.dumps(bom, indent=2, ensure_ascii=False))
    record = record.model_copy(update={"files": list_files(folder, RECORD)})
    replace_file(folder / RECORD, record.model_dump_json(indent=2))
    if request.sign:
        sign(folder, request.sign)
    return record


def _refuse_miscopied(record: Export, manifest: Manifest) -> None:
    """Files that were copied have the manifest's digests; the checkpoint may have been moved aside meanwhile."""
    if record.weights == "merged" and record.relative_error is None:
        listed = {entry.path: entry.sha256 for entry in manifest.files}
        wrong = [entry.path for entry in record.files if listed.get(entry.path, entry.sha256) != entry.sha256]
        if wrong:
            raise StageError(f"{wrong[0]} was changed while it was copied; export again; nothing was published")


@contextmanager
def _appearing_whole(target: Path) -> Iterator[Path]:
    """A folder to fill, of the same name as its place, to which it is moved at the end; removed where that fails."""
    _remove_leftovers(target)
    place = target.parent / f".{target.name}.{secrets.token_hex(4)}.unfinished"
    try:
        folder = place / target.name
        place.mkdir(parents=True)
        with FileLock(place / _LOCK):
            folder.mkdir()
            yield folder
            for path in (*folder.rglob("*"), folder):
                sync(path)
            folder.rename(target)  # takes the place of an empty folder, too
            sync(target.parent)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed exports to the same place have left; a living one holds its lock."""
    for place in target.parent.glob(f".{escape(target.name)}.????????.unfinished"):
        if (place / target.name).is_dir():  # which is made after the lock is taken
            with suppress(Timeout, OSError), FileLock(place / _LOCK, timeout=0):
                shutil.rmtree(place, ignore_errors=True)


def _explain(error: OSError, target: Path) -> Exception:
    if is_disk_full(error):
        remedy = "free space, or name a folder on another disk; nothing was left there"
        return StageError(f"the disk of {target.parent} is full ({error.strerror or error}); {remedy}")
    return InputError(f"{target}: cannot be written ({error.strerror or error}); name another place")
