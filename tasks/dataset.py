"""A dataset as a Prefect task: read, checked against its stage, and frozen as a snapshot under its content's digest."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Dataset, Manifest
from models.fingerprint import ID_LENGTH, canonical_json, fingerprint
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from tasks.child_main import ChildOptions
from tasks.data.rows import CheckedRows, Role, check_rows, snapshot_identity
from tasks.data.sources import local_files
from tasks.execution import Execution
from tasks.files import file_digest
from tasks.licensing import hub_dataset
from tasks.making import find_or_make
from tasks.provenance import provenance, public_source
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

    Rows of prompts must have what `rules` read of them.

    Raises:
        InputError: a row does not fit the stage, or there are none.
    """
    checked = check_rows(source, role, system_prompt, rules)
    identity = snapshot_identity(checked.rows)
    name = fingerprint(identity)[:ID_LENGTH]

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        rules = {"duplicates_dropped": checked.duplicates, "system_prompt": system_prompt}
        rules |= {"unpaired_dropped": checked.unpaired} if checked.unpaired else {}
        told = {"rows": len(checked.rows), "rules": rules, "recognised": checked.recognised}
        origin = public_source(source) | _content(source) | told
        return _write_and_publish(identity, checked, origin, execution, store)

    def read(path: Path, manifest: Manifest) -> Dataset:
        return Dataset(
            path=path, fingerprint=manifest.fingerprint, rows=len(checked.rows), source=public_source(source)["path"]
        )

    return find_or_make("dataset", name, execution, make, read, f"dataset-{name}")


def _write_and_publish(
    identity: dict[str, str], checked: CheckedRows, origin: dict[str, Any], execution: Execution, store: ArtifactStore
) -> Manifest:
    name = fingerprint(identity)[:ID_LENGTH]
    folder = store.partial("dataset", name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(canonical_json(row) + "\n" for row in checked.rows)
    return store.publish(
        folder,
        name=name,
        kind="dataset",
        fingerprint=fingerprint(identity),
        identity=identity,
        origin=origin,
        metrics={"rows": float(len(checked.rows)), "duplicates_dropped": float(checked.duplicates)},
        **provenance(execution),
    )


def _content(source: DatasetSource) -> dict[str, Any]:
    """What pins the rows: digests of local files, or the hub's commit; with the hub's word on the licence."""
    files = local_files(source)
    if files:
        return {"files": {file.name: file_digest(file) for file in files}}
    said = hub_dataset(source)
    return said | ({"license": source.license} if source.license else {})
