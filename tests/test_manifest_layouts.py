"""Manifests as earlier versions of this pipeline wrote them (`tests/layouts`) are read, verified and built upon."""

import shutil
from pathlib import Path

import pytest

from models.artifacts import SCHEMA_VERSION
from tasks.finding import resolve
from tasks.lineage import ancestry, with_ancestors
from tasks.store import ArtifactStore, damage, read_manifest
from tests.folders import publish

LAYOUTS = sorted((Path(__file__).parent / "layouts").iterdir())


@pytest.fixture(params=LAYOUTS, ids=lambda path: path.name)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An artifact root with a base model, a snapshot and SFT's checkpoint."""
    return ArtifactStore(Path(shutil.copytree(request.param, tmp_path / "home")))


def test_every_earlier_layout_has_its_example() -> None:
    found = [read_manifest(next(layout.glob("checkpoints/*"))).schema_version for layout in LAYOUTS]
    assert found == list(range(1, SCHEMA_VERSION))


def test_it_is_found_whole(store: ArtifactStore) -> None:
    path, manifest = resolve(store, "sft")
    assert [damage(folder) for folder in with_ancestors(store, path)] == [[], [], []]
    assert store.find("checkpoint", path.name) == manifest
    (attempt,) = manifest.attempts
    assert (attempt.reached_step, attempt.machine, attempt.energy_joules) == (4, "", None)


def test_its_lineage_is_told(store: ArtifactStore) -> None:
    graph = ancestry(store, resolve(store, "sft")[0])
    assert [(node.kind, node.state) for node in graph.nodes.values()] == [
        ("checkpoint", "there"),
        ("base", "there"),
        ("dataset", "there"),
    ]
    assert list(graph.nodes[graph.root].parents) == ["policy", "dataset"]


def test_what_is_made_from_it_tells_of_its_ancestors(store: ArtifactStore) -> None:
    sft, manifest = resolve(store, "sft")
    dpo = publish(store, "dpo", parents={"policy": sft.name})
    told = read_manifest(dpo).ancestors
    assert list(told) == [sft.name, *manifest.parents.values()]
    assert told[sft.name].identity == manifest.identity


def test_a_change_is_noticed(store: ArtifactStore) -> None:
    path, manifest = resolve(store, "sft")
    (path / "config.json").write_text("{!}")
    assert "config.json" in damage(path)[0]
    if manifest.digest:
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text.replace('"train_loss": 2.25', '"train_loss": 0.25'))
        assert "changed after it was written" in damage(path)[0]
