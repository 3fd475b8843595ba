"""Lineage in Prefect, read back from a real server: the graph, links to parents and run, and events of assets."""

import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client

from models.run import RunRecord
from tasks.assets import asset_key
from tasks.lineage import ancestry
from tasks.reporting.lineage_page import render_drawing, render_lineage
from tasks.store import ArtifactStore, read_manifest

pytestmark = pytest.mark.slow


def ask(path: str, **question: Any) -> Any:
    """Ask the server as its UI does."""
    with get_client(sync_client=True) as client:
        return client._client.post(path, json=question).raise_for_status().json()


def artifact(key: str, policy: Path) -> dict[str, Any]:
    """The artifact of the run that made the policy; other tests' runs are on the same server."""
    run = {"any_": [read_manifest(policy).prefect["flow_run"]]}
    (found,) = ask("/artifacts/filter", artifacts={"key": {"any_": [key]}, "flow_run_id": run})
    return dict(found)


@pytest.fixture(scope="module")
def policy(finished_run: tuple[Path, RunRecord]) -> Path:
    """The folder of the finished run's last policy."""
    (path,) = finished_run[0].glob("checkpoints/grpo-*")
    return path


def test_the_graph_is_an_image_in_the_ui(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    store = ArtifactStore(finished_run[0])
    found = artifact("lineage", policy)
    kind, _, content = found["data"].partition(",")
    assert (found["type"], kind) == ("image", "data:image/svg+xml;base64")
    assert b64decode(content).decode() == render_drawing(ancestry(store, policy))
    assert policy.name in found["description"]


def test_the_page_lies_beside_the_report(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    home, record = finished_run
    page = home / "runs" / record.id / "lineage.html"
    store = ArtifactStore(home)
    assert page.read_text() == render_lineage(store, ancestry(store, policy))
    assert page.as_uri() in artifact("lineage-page", policy)["data"]
    assert record.report
    assert 'href="lineage.html"' in record.report.read_text()


def test_a_stages_card_links_parents_and_run(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    home, record = finished_run
    card = artifact(f"checkpoint-{policy.name}", policy)["data"]
    manifest = read_manifest(policy)
    assert f"[{record.id}]({(home / 'runs' / record.id).as_uri()})" in card
    for role, parent in manifest.parents.items():
        place = ArtifactStore(home).locate(parent)
        assert place
        assert f"- {role}: [{parent}]({place.as_uri()})" in card


def test_a_published_checkpoint_is_an_asset_made_from_its_parents(policy: Path) -> None:
    key = asset_key("checkpoint", policy.name)
    question = {"resource": {"id": [key]}, "event": {"prefix": ["prefect.asset.materialization"]}}
    manifest = read_manifest(policy)
    events: list[dict[str, Any]] = []
    for _ in range(50):
        found = ask("/events/filter", filter=question)["events"]
        if events := [event for event in found if event["payload"]["run"] == manifest.run]:
            break
        time.sleep(0.2)
    (event,) = events
    related = [each["prefect.resource.id"] for each in event["related"] if each["prefect.resource.role"] == "asset"]
    kinds = {"policy": "checkpoint", "reward_model": "checkpoint", "dataset": "dataset"}
    assert related == [asset_key(kinds[role], name) for role, name in manifest.parents.items()]  # type: ignore[arg-type]
    assert event["payload"]["fingerprint"] == manifest.fingerprint
