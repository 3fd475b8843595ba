"""Published folders as Prefect assets: an event for each, in the form of Prefect's own, with its parents."""

from prefect.events import emit_event

from models.artifacts import Kind, Manifest
from tasks.store import ArtifactStore


def asset_key(kind: Kind, name: str) -> str:
    """Under which Prefect knows a folder: the same for all runs and machines that share it."""
    return f"align://{kind}/{name}"


def materialized(store: ArtifactStore, name: str, manifest: Manifest) -> None:
    """Tell Prefect that a folder was published and what it was made from; servers without assets keep the event."""
    known = store.ancestors_of(manifest)
    parents = [asset_key(known[parent].kind, parent) for parent in manifest.parents.values() if parent in known]
    emit_event(
        event="prefect.asset.materialization.succeeded",
        resource={"prefect.resource.id": asset_key(manifest.kind, name), "prefect.resource.name": name},
        related=[{"prefect.resource.id": parent, "prefect.resource.role": "asset"} for parent in parents],
        payload={"fingerprint": manifest.fingerprint, "run": manifest.run, "metrics": manifest.metrics},
    )
