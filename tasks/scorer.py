"""A reward model from elsewhere as a Prefect task: one of the artifact root is taken, others are converted once."""

import time
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Kind, Manifest
from models.errors import InputError
from models.rewards import Reward
from models.sources import BaseModelSource
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import convert_scorer
from tasks.execution import Execution
from tasks.licensing import model_license
from tasks.making import find_or_make
from tasks.provenance import provenance
from tasks.scorer_check import FoundScorer, find_scorer, scorer_checkpoint
from tasks.stage import LIGHT_RETRIES, was_killed
from tasks.store import ArtifactStore
from tasks.telling import Teller


@task(
    name="prepare-reward-model",
    cache_policy=NO_CACHE,
    retries=LIGHT_RETRIES,
    retry_condition_fn=was_killed,
)
def prepare_scorer(reward: Reward, execution: Execution) -> Checkpoint:
    """Give the reward model that a reward names, whole and in the artifact root.

    Raises:
        InputError: there is none of that name, or it is no reward model.
        OutOfMemory, Killed, StageError: the conversion failed.
    """
    found = find_scorer(reward, ArtifactStore(execution.settings.home), execution.precision)
    path = found.checkpoint.path

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        return _convert_and_publish(found, execution, store, teller, options)

    kind: Kind = "base" if found.wanted or path.parent.name == "base" else "checkpoint"
    return find_or_make(kind, path.name, execution, make, scorer_checkpoint, f"scorer-{found.checkpoint.id}")


def _convert_and_publish(
    found: FoundScorer, execution: Execution, store: ArtifactStore, teller: Teller, options: ChildOptions
) -> Manifest:
    wanted, source, name = found.wanted, found.source, found.checkpoint.path.name
    if wanted is None or source is None:
        raise InputError(f"reward model {name} was pruned and cannot be rebuilt; run its recipe again to make it anew")
    store.discard_partial("base", name)
    folder = store.partial("base", name)
    started = time.monotonic()
    metrics = run_in_child(convert_scorer, (wanted, source, folder), options, teller.report, teller.line)
    origin = {"source": source.source, "name": _public_name(source), "license": model_license(source), **wanted.origin}
    return store.publish(
        folder,
        name=name,
        kind="base",
        fingerprint=wanted.fingerprint,
        identity=wanted.identity(),
        origin=origin,
        metrics=metrics | {"seconds": time.monotonic() - started},
        **provenance(execution),
    )


def _public_name(source: BaseModelSource) -> str:
    """The name without folders."""
    return source.name if source.source == "hub" else Path(source.name).name
