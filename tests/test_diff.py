"""What differs between two checkpoints: by key, also where an ancestor's recipe or data differ, and by figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from models.artifacts import Pruned
from models.evaluation import Estimate, HeldOutFigures
from models.fingerprint import ID_LENGTH, fingerprint
from models.lineage import Difference
from tasks.differing import difference
from tasks.pruned import mark_pruned
from tasks.store import ArtifactStore
from tests.folders import name_of, publish


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """An empty artifact root, which the command takes."""
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    return ArtifactStore(tmp_path / "home")


def checkpoint(store: ArtifactStore, stage: str, parents: dict[str, str], seed: int = 1, **asked: Any) -> str:
    """Publish a checkpoint with these hyperparameters and return its name."""
    identity = {"stage": stage, "code_version": 1, "hyperparameters": asked, "seed": seed, "parents": parents}
    content = store.home / "making"
    content.mkdir(parents=True)
    (content / "config.json").write_text("{}")
    digits = fingerprint(identity)
    facts = {"fingerprint": digits, "identity": identity, "parents": parents, "metrics": {"train_loss": 1.5 + seed}}
    store.publish(content, kind="checkpoint", name=f"{stage}-{digits[:ID_LENGTH]}", **facts)
    return f"{stage}-{digits[:ID_LENGTH]}"


def evaluation(store: ArtifactStore, number: int, judged: str, rows: str, value: float) -> None:
    figure = Estimate(value=value, low=value - 0.1, high=value + 0.1, n=96)
    result = HeldOutFigures(exact_match=figure).model_dump_json().encode()
    parents = {"checkpoint": judged, "prompts": rows}
    publish(store, "evaluation", number, {"result.json": result}, parents=parents)


@pytest.fixture
def pair(store: ArtifactStore) -> tuple[str, str]:
    """Two DPO checkpoints of SFT ones that differ in learning rate and data."""
    base = publish(store, "base", origin={"source": "folder", "name": "model"}).name
    rows = [publish(store, "dataset", number, origin={"path": f"rows-{number}.jsonl"}).name for number in (0, 1)]
    sft = [
        checkpoint(store, "sft", {"policy": base, "dataset": each}, learning_rate=rate)
        for each, rate in zip(rows, (1e-4, 2e-4), strict=True)
    ]
    one, other = [
        checkpoint(store, "dpo", {"policy": parent, "dataset": rows[0]}, beta=0.1, lora={"r": 8}, seed=seed)
        for seed, parent in enumerate(sft)
    ]
    return one, other


def keys(found: Difference, section: str) -> dict[str, tuple[Any, Any]]:
    return {change.key: (change.a, change.b) for change in found.sections[section]}


def test_recipes_of_all_stages_are_compared(store: ArtifactStore, pair: tuple[str, str]) -> None:
    found = difference(store, *pair)
    assert keys(found, "recipe") == {"sft.learning_rate": (1e-4, 2e-4), "dpo.seed": (0, 1)}
    assert not found.same


def test_data_and_figures(store: ArtifactStore, pair: tuple[str, str]) -> None:
    found = difference(store, *pair)
    assert keys(found, "data")["sft.dataset.path"] == ("rows-0.jsonl", "rows-1.jsonl")
    assert set(keys(found, "parents")) == {"policy"}
    assert keys(found, "metrics") == {"train_loss": (1.5, 2.5)}


def test_nothing_differs_from_itself(store: ArtifactStore, pair: tuple[str, str]) -> None:
    found = difference(store, pair[0], pair[0])
    assert found.same
    assert not any(found.sections.values())


def test_held_out_figures_are_compared_on_the_same_rows_only(store: ArtifactStore, pair: tuple[str, str]) -> None:
    evaluation(store, 0, pair[0], "a" * 16, 0.4)
    evaluation(store, 1, pair[1], "b" * 16, 0.6)
    assert difference(store, *pair).held_out == ()
    evaluation(store, 2, pair[1], "a" * 16, 0.5)
    (figure,) = difference(store, *pair).held_out
    assert (figure.name, figure.a.value, figure.b.value) == ("exact_match", 0.4, 0.5)


def test_the_command_tells_it(store: ArtifactStore, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(store, 0, pair[0], "a" * 16, 0.4)
    evaluation(store, 1, pair[1], "a" * 16, 0.5)
    assert main(["diff", *pair]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("sft.learning_rate", "+0.0001", "rows-1.jsonl", "0.40 [0.30, 0.50]", "+0.10"):
        assert part in said
    assert "no difference in code, versions, machine, attempts" in said
    assert main(["diff", *pair, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is False


def test_a_pruned_evaluation_has_no_figures_any_more(store: ArtifactStore, pair: tuple[str, str]) -> None:
    for number, judged in enumerate(pair):
        evaluation(store, number, judged, "a" * 16, 0.4)
    pruned = store.folder("evaluation", name_of("evaluation", 1))
    mark_pruned(pruned, Pruned(files=("result.json",), when="2026-01-01T00:00:00+00:00", why="space"))
    (pruned / "result.json").unlink()
    assert difference(store, *pair).held_out == ()
