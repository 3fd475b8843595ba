"""Models from elsewhere, converted once and published: the base model, and reward models that GRPO names."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.artifacts import Manifest
from models.scorer import ScorerInput
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.execution import Execution
from tasks.licensing import model_license
from tasks.provenance import provenance
from tasks.store import ArtifactStore
from tasks.telling import Teller


def converting(
    stage: BaseModelInput | ScorerInput,
    source: BaseModelSource,
    convert: Callable[..., dict[str, float]],
    place: Any,
    execution: Execution,
) -> Callable[[ArtifactStore, Teller, ChildOptions], Manifest]:
    """What makes and publishes a converted model, as `tasks.making.find_or_make` takes it.

    Args:
        stage: What decides the converted model.
        source: Where it comes from, for its name and licence.
        convert: The door in `tasks.core.entry`: `(stage, place, folder, report) -> metrics`.
        place: Where the door finds the model.
        execution: The machine's part.
    """

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        store.discard_partial("base", stage.id)
        folder = store.partial("base", stage.id)
        started = time.monotonic()
        metrics = run_in_child(convert, (stage, place, folder), options, teller.report, teller.line)
        return store.publish(
            folder,
            name=stage.id,
            kind="base",
            fingerprint=stage.fingerprint,
            identity=stage.identity(),
            origin=_origin(source) | stage.origin,
            metrics=metrics | {"seconds": time.monotonic() - started},
            **provenance(execution),
        )

    return make


def _origin(source: BaseModelSource) -> dict[str, str | None]:
    """Kind of source, name without folders, and licence."""
    name = source.name if source.source == "hub" else Path(source.name).name
    return {"source": source.source, "name": name, "license": model_license(source)}
