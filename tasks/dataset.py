"""A dataset as a Prefect task: read, checked against its stage, and frozen as a snapshot under its content's digest."""

from collections import Counter
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Dataset, Manifest
from models.errors import InputError
from models.fingerprint import ID_LENGTH, fingerprint
from models.preparation import Cleaning, Prepared, SnapshotCard
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from models.stages import BaseModelInput
from tasks.base_model_check import locate
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import measure_rows, render
from tasks.data.card import write_card
from tasks.data.checking import kept_apart, wanted_rows
from tasks.data.formats.reading import Role
from tasks.data.located import Located
from tasks.data.preparations import Preparations, Ready, hand_over
from tasks.data.preparing import Manner
from tasks.data.snapshot import ROWS, first_row
from tasks.execution import Execution
from tasks.files import file_digest
from tasks.licensing import hub_dataset
from tasks.making import find_or_make
from tasks.progress import Progress, announce, sparingly
from tasks.provenance import provenance, public_source, without_folders
from tasks.pruned import is_pruned
from tasks.store import ArtifactStore
from tasks.telling import Teller


@task(name="prepare-dataset", task_run_name="dataset for {role}", cache_policy=NO_CACHE)
def prepare_dataset(
    source: DatasetSource,
    role: Role,
    system_prompt: str | None,
    execution: Execution,
    rules: tuple[Reward | Verifier, ...] = (),
    cleaning: Cleaning | None = None,
) -> Dataset:
    """Read and check rows, and freeze them; the same content gives the same snapshot, whatever file it came from.

    An unchanged source is not read again.

    Args:
        source: Where the rows come from.
        role: What they are for.
        system_prompt: Put before each prompt without a system message.
        execution: The machine's part.
        rules: What reads the rows of prompts, which must have what it reads.
        cleaning: What becomes of rows that break a data rule; default: as the rules are by default.

    Raises:
        InputError: a row does not fit the stage, or there are none.
        Killed, StageError: a process that prepares rows ended.
    """
    wanted = wanted_rows(source, role, system_prompt, rules, cleaning)
    preparations = Preparations(execution.settings.home, _telling(f"dataset for {role}"))
    if cleaning:
        wanted = kept_apart(wanted, cleaning, preparations)
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
        card = card.model_copy(update=_as_the_model_sees(there, cleaning, execution, teller, options))
        for warning in card.example.warnings if card.example else ():
            teller.line(f"{source.label}: {warning}")
        changed = wanted.data_rules.changed
        return _publish(card, without_folders(source).label, there, execution, store, changed)

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


def _as_the_model_sees(
    ready: Ready, cleaning: Cleaning | None, execution: Execution, teller: Teller, options: ChildOptions
) -> dict[str, Any]:
    """The first row as the base model sees it, and how many tokens all have, as fields of a card.

    None where the model's files are not here: it is not worth bringing them.
    """
    if cleaning is None or cleaning.model is None:
        return {}
    stage = BaseModelInput(source=cleaning.model, origin=locate(cleaning.model)[1], precision=execution.precision)
    base = ArtifactStore(execution.settings.home).folder("base", stage.id)
    if not base.is_dir() or is_pruned(base):
        return {}
    known = ready.prepared.tokens  # where a rule asks for them, they were counted as the rows were read
    if known:
        row = (first_row(ready.folder), base, None)
        return {"example": run_in_child(render, row, options, lambda report: None, teller.line), "tokens": known}
    asked = (ready.folder, base, cleaning.max_tokens)
    example, tokens = run_in_child(measure_rows, asked, options, lambda report: None, teller.line)
    return {"example": example, "tokens": tokens}


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
        rules=_left_out(found),
        problems=found.problems,
        remarks=found.remarks,
        other_side=found.other_side,
        parts=tuple(
            part.model_copy(update={"revision": each.commit})
            for part, each in zip(found.parts, ready.located, strict=False)  # parts are those of a mixture
        ),
        tokens=found.tokens,
        recognised=found.recognised,
        **_said(source, ready.located),
    )


def _left_out(found: Prepared) -> dict[str, int]:
    """How many rows each rule has left out or mended, those without a partner included."""
    counts: Counter[str] = Counter(duplicate=found.duplicates, unpaired=found.unpaired)
    counts.update(
        {each.rule: each.rows for each in found.problems if each.action != "keep" and each.rule != "duplicate"}
    )
    return dict(counts)


def _said(source: DatasetSource, located: tuple[Located, ...]) -> dict[str, Any]:
    """The hub's commit, and the licence by the recipe's word or the hub's; of a mixture, all of its parts'."""
    hub = [hub_dataset(part.pinned) if not part.files else {} for part in located]
    licences = [part.source.license or said.get("license") for part, said in zip(located, hub, strict=True)]
    known = dict.fromkeys(each for each in licences if each)
    revision = located[0].commit if len(located) == 1 else None
    return {"revision": revision, "license": " AND ".join(known) if known and all(licences) else None}


def _files(located: tuple[Located, ...]) -> dict[str, str]:
    """Digests of local files by name; of files with one name, by as many of their folders as tell them apart."""
    files = dict.fromkeys(file.absolute() for part in located for file in part.files)
    ends = {file: [Path(*file.parts[-depth:]) for depth in range(1, len(file.parts) + 1)] for file in files}
    counts = Counter(end for each in ends.values() for end in each)
    return {next(str(end) for end in ends[file] if counts[end] == 1): file_digest(file) for file in files}


def _publish(
    card: SnapshotCard,
    label: str,
    ready: Ready,
    execution: Execution,
    store: ArtifactStore,
    changed: dict[str, Any],
) -> Manifest:
    identity = ready.prepared.identity
    name = fingerprint(identity)[:ID_LENGTH]
    folder = store.partial("dataset", name)
    store.discard_partial("dataset", name)
    hand_over(ready, folder)
    write_card(folder, card, first_row(folder))
    return store.publish(
        folder,
        name=name,
        kind="dataset",
        fingerprint=fingerprint(identity),
        identity=identity,
        origin={"path": label} | _origin(card, changed),
        metrics={"rows": float(card.rows), "duplicates_dropped": float(ready.prepared.duplicates)},
        **provenance(execution),
    )


def _origin(card: SnapshotCard, changed: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of where the rows come from: the source with files or commits, and the rules applied."""
    rules: dict[str, Any] = {"duplicates_dropped": card.rules["duplicate"], "system_prompt": card.system_prompt}
    rules |= {"unpaired_dropped": card.rules["unpaired"]} if card.rules["unpaired"] else {}
    rules |= {"data_rules": changed} if changed else {}
    said: dict[str, Any] = {"rows": card.rows, "rules": rules, "recognised": card.recognised}
    said |= {"files": card.files} if card.files else {}
    said |= {"commit": card.revision} if card.revision else {}
    said |= {"license": card.license} if card.license else {}
    if card.parts:
        asked = zip(card.source["mixture"], card.parts, strict=True)
        said["mixture"] = [part | ({"commit": of.revision} if of.revision else {}) for part, of in asked]
    return card.source | said
