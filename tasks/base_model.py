"""The base model as a Prefect task: found, pinned by content, converted once and kept under the artifact root."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Manifest
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from tasks.base_model_check import locate
from tasks.converting import converting
from tasks.core.entry import convert
from tasks.execution import Execution
from tasks.making import find_or_make
from tasks.stage import LIGHT_RETRIES, was_killed


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

    make = converting(stage, source, convert, location, execution)

    def read(path: Path, manifest: Manifest) -> Checkpoint:
        return Checkpoint(path=path, fingerprint=manifest.fingerprint, stage="base", precision=stage.precision)

    return find_or_make("base", stage.id, execution, make, read, f"base-{stage.id}")
