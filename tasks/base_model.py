"""The base model as a Prefect task: found, pinned by content, converted once and kept under the artifact root."""

import time
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Manifest
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from tasks.base_model_check import locate
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import convert
from tasks.execution import Execution
from tasks.licensing import model_license
from tasks.making import find_or_make
from tasks.provenance import provenance
from tasks.stage import LIGHT_RETRIES, was_killed
from tasks.store import ArtifactStore
from tasks.telling import Teller


@task(
    name="prepare-base-model",
    cache_policy=NO_CACHE,
    retries=LIGHT_RETRIES,
    retry_condition_fn=was_killed,
)
def prepare_base_model(source: BaseModelSource, execution: Execution) -> Checkpoint:
    """Convert the base model to a safetensors folder that can chat, unless it is there.

    Raises:
        InputError: the source is not there, or the model lacks a chat template or a token.
        OutOfMemory, Killed, StageError: the conversion failed.
    """
    location, origin = locate(source)
    stage = BaseModelInput(source=source, origin=origin, precision=execution.precision)

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        return _convert_and_publish(stage, location, execution, store, teller, options)

    def read(path: Path, manifest: Manifest) -> Checkpoint:
        return Checkpoint(path=path, fingerprint=manifest.fingerprint, stage="base", precision=stage.precision)

    return find_or_make("base", stage.id, execution, make, read, f"base-{stage.id}")


def _convert_and_publish(
    stage: BaseModelInput,
    location: str,
    execution: Execution,
    store: ArtifactStore,
    teller: Teller,
    options: ChildOptions,
) -> Manifest:
    name = stage.id
    store.discard_partial("base", name)
    folder = store.partial("base", name)
    started = time.monotonic()
    metrics = run_in_child(convert, (stage, location, folder), options, teller.report, teller.line)
    return store.publish(
        folder,
        name=name,
        kind="base",
        fingerprint=stage.fingerprint,
        identity=stage.identity(),
        origin=_origin(stage),
        metrics=metrics | {"seconds": time.monotonic() - started},
        **provenance(execution),
    )


def _origin(stage: BaseModelInput) -> dict[str, str | None]:
    """Kind of source, name without folders, licence, and what pins the content."""
    source = stage.source
    name = source.name if source.source == "hub" else Path(source.name).name
    return {"source": source.source, "name": name, "license": model_license(source), **stage.origin}
