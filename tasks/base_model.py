"""The base model as a Prefect task: found, pinned by content, converted once and kept under the artifact root."""

import re
import time
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Manifest
from models.errors import InputError
from models.fingerprint import ID_LENGTH, fingerprint
from models.recipe import BaseModelSource
from models.stages import BaseModelInput
from settings.chat_templates import chat_template
from tasks.base_model_check import packaged_gguf
from tasks.child import ChildOptions, run_in_child
from tasks.core.entry import convert
from tasks.execution import Execution
from tasks.making import find_or_make
from tasks.provenance import provenance
from tasks.store import ArtifactStore, file_digest
from tasks.telling import Teller

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that Transformers reads: weights, configuration, tokenizer, template."""


@task(name="prepare-base-model", cache_policy=NO_CACHE)
def prepare_base_model(source: BaseModelSource, execution: Execution) -> Checkpoint:
    """Convert the base model to a safetensors folder that can chat, unless it is there.

    Raises:
        InputError: the source is not there, or the model lacks a chat template or a token.
        StageError: the conversion failed.
    """
    location, origin = locate(source)
    stage = BaseModelInput(source=source, origin=origin, precision=execution.precision)

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        return _convert_and_publish(stage, location, execution, store, teller, options)

    def read(path: Path, manifest: Manifest) -> Checkpoint:
        return Checkpoint(path=path, fingerprint=manifest.fingerprint, stage="base", precision=stage.precision)

    return find_or_make(
        "base", stage.fingerprint[:ID_LENGTH], execution, make, read, f"base-{stage.fingerprint[:ID_LENGTH]}"
    )


def locate(source: BaseModelSource) -> tuple[str, dict[str, str]]:
    """Where the base model lies, and what pins its content.

    Returns:
        A GGUF file, a folder or a hub id; and digests of its files, or the hub's commit.

    Raises:
        InputError: it is not there.
    """
    template = {"chat_template": fingerprint(chat_template(source.chat_template))} if source.chat_template else {}
    if source.source == "package":
        file = packaged_gguf(source.name)
        return str(file), {"sha256": file_digest(file)} | template
    if source.source == "folder":
        files = sorted(path for ending in _MODEL_FILES for path in Path(source.name).glob(f"*{ending}"))
        return source.name, {path.name: file_digest(path) for path in files} | template
    pinned = source.revision if re.fullmatch(r"[0-9a-f]{40}", source.revision or "") else None
    return source.name, {"hub": source.name, "commit": pinned or _hub_commit(source)} | template


def _hub_commit(source: BaseModelSource) -> str:
    """The commit that the wanted revision points to now.

    Raises:
        InputError: the hub cannot be reached or does not have it.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(source.name, revision=source.revision).sha)
    except Exception as error:
        raise InputError(
            f"base_model.name: hub model '{source.name}' at revision '{source.revision or 'main'}' cannot be looked up "
            f"({type(error).__name__}); check the id and the network, or use source: folder"
        ) from error


def _convert_and_publish(
    stage: BaseModelInput,
    location: str,
    execution: Execution,
    store: ArtifactStore,
    teller: Teller,
    options: ChildOptions,
) -> Manifest:
    name = stage.fingerprint[:ID_LENGTH]
    store.discard_partial("base", name)
    folder = store.partial("base", name)
    started = time.monotonic()
    metrics, _ = run_in_child(convert, (stage, location, folder), options, teller.report, teller.line)
    return store.publish(
        folder,
        name=name,
        kind="base",
        fingerprint=stage.fingerprint,
        identity=stage.identity(),
        origin={"source": stage.source.source, "name": Path(stage.source.name).name, **stage.origin},
        metrics=metrics | {"seconds": time.monotonic() - started},
        **provenance(execution),
    )
