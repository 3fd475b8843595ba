"""A dataset as a Prefect task: read, checked against its stage, and frozen as a snapshot under its content's digest."""

from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Dataset, Manifest
from models.errors import InputError
from models.fingerprint import ID_LENGTH, fingerprint
from models.preparation import SnapshotCard
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from tasks.child_main import ChildOptions
from tasks.data.card import write_card
from tasks.data.checking import wanted_rows
from tasks.data.located import Located
from tasks.data.preparations import Preparations, Ready
from tasks.data.preparing import Manner
from tasks.data.rows import Role
from tasks.data.snapshot import ROWS, read_rows
from tasks.execution import Execution
from tasks.files import file_digest
from tasks.licensing import hub_dataset
from tasks.making import find_or_make
from tasks.progress import Progress, announce, sparingly
from tasks.provenance import provenance, public_source, without_folders
from tasks.store import ArtifactStore
from tasks.telling import Teller


@task(name="prepare-dataset", task_run_name="dataset for {role}", cache_policy=NO_CACHE)
def prepare_dataset(
    source: DatasetSource,
    role: Role,
    system_prompt: str | None,
    execution: Execution,
    rules: tuple[Reward | Verifier, ...] = (),
) -> Dataset:
    """Read and check rows, and freeze them; the same content gives the same snapshot, whatever file it came from.

    Rows of prompts must have what `rules` read of them. An unchanged source is not read again.

    Raises:
        InputError: a row does not fit the stage, or there are none.
        Killed, StageError: a process that prepares rows ended.
    """
    wanted = wanted_rows(source, role, system_prompt, rules)
    preparations = Preparations(execution.settings.home, _telling(f"dataset for {role}"))
    ready = preparations.ready(source, wanted)
    identity = ready.prepared.identity
    name = fingerprint(identity)[:ID_LENGTH]

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        there = ready
        if ready.published or not (ready.folder / ROWS).exists():  # damaged, or another run has taken it meanwhile
            there = preparations.make(source, wanted)
        if there.prepared.identity != identity:
            raise InputError(f"{source.label}: it changed while it was read; run again when nobody writes to it")
        card = _card(source, role, system_prompt, there)
        return _publish(card, without_folders(source).label, there, execution, store)

    def read(path: Path, manifest: Manifest) -> Dataset:
        return Dataset(
            path=path, fingerprint=manifest.fingerprint, rows=ready.prepared.rows, source=without_folders(source).label
        )

    try:
        made = find_or_make("dataset", name, execution, make, read, f"dataset-{name}")
        preparations.note(ready)
    finally:
        preparations.discard_all()
        preparations.discard(ready)
    return made


def _telling(stage: str) -> Manner:
    return Manner(on_progress=sparingly(lambda rows: announce(Progress(stage=stage, phase=f"{rows:,} rows read"))))


def _card(source: DatasetSource, role: Role, system_prompt: str | None, ready: Ready) -> SnapshotCard:
    found = ready.prepared
    return SnapshotCard(
        digest=found.rows_sha256,
        role=role,
        source=public_source(source),
        files=_files(ready.located),
        system_prompt=system_prompt,
        rows_read=found.read,
        rows=found.rows,
        rules={"duplicate": found.duplicates, "unpaired": found.unpaired},
        other_side=found.other_side,
        parts=found.parts,
        tokens=found.tokens,
        recognised=found.recognised,
        **_said(source, ready.located),
    )


def _said(source: DatasetSource, located: tuple[Located, ...]) -> dict[str, Any]:
    """The hub's commit, and the licence by the recipe's word or the hub's; of a mixture, all of its parts'."""
    hub = [hub_dataset(part.source) if not part.files else {} for part in located]
    licences = [part.source.license or said.get("license") for part, said in zip(located, hub, strict=True)]
    known = dict.fromkeys(each for each in licences if each)
    revision = located[0].commit if len(located) == 1 else None
    return {"revision": revision, "license": " AND ".join(known) if known and all(licences) else None}


def _files(located: tuple[Located, ...]) -> dict[str, str]:
    """Digests of local files by name; of files with one name, by their folder, too."""
    files = [file for part in located for file in part.files]
    names = [file.name for file in files]
    return {
        file.name if names.count(file.name) == 1 else f"{file.parent.name}/{file.name}": file_digest(file)
        for file in files
    }


def _publish(card: SnapshotCard, label: str, ready: Ready, execution: Execution, store: ArtifactStore) -> Manifest:
    identity = ready.prepared.identity
    name = fingerprint(identity)[:ID_LENGTH]
    folder = store.partial("dataset", name)
    store.discard_partial("dataset", name)
    folder.mkdir(parents=True)
    (ready.folder / ROWS).rename(folder / ROWS)
    write_card(folder, card, next(islice(read_rows(folder), 1), None))
    rules: dict[str, Any] = {"duplicates_dropped": ready.prepared.duplicates, "system_prompt": card.system_prompt}
    if ready.prepared.unpaired:
        rules["unpaired_dropped"] = ready.prepared.unpaired
    said: dict[str, Any] = {"files": card.files} if card.files else {}
    said |= {"rows": card.rows, "rules": rules, "recognised": card.recognised}
    said |= {"commit": card.revision} if card.revision else {}
    said |= {"license": card.license} if card.license else {}
    return store.publish(
        folder,
        name=name,
        kind="dataset",
        fingerprint=fingerprint(identity),
        identity=identity,
        origin={"path": label} | card.source | said,
        metrics={"rows": float(card.rows), "duplicates_dropped": float(ready.prepared.duplicates)},
        **provenance(execution),
    )
