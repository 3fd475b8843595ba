"""Pruning: a dry run by default, nothing lost that is wanted or cannot come back, lineage unbroken, no crash harms."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.__main__ import main
from models.artifacts import Checkpoint
from models.recipe import Recipe
from models.run import RunRecord, StageOutcome
from tasks.child_main import ChildOptions
from tasks.files import file_digest
from tasks.lineage import ancestry
from tasks.pruned import is_pruned
from tasks.pruning import carry_out, plan_prune
from tasks.restoring import obstacle
from tasks.run_record import hold_run, release_run, save_run
from tasks.store import MANIFEST, ArtifactStore, damage, read_manifest
from tests.folders import content_of, name_of, publish
from tests.tiny import run_align, tiny_recipe


def options() -> Any:
    return nullcontext(ChildOptions(threads=2))


def record(store: ArtifactStore, number: int, *made: Path, needs: tuple[str, ...] = ()) -> str:
    """Write the record of a run that has made these checkpoints."""
    stages = tuple(
        StageOutcome(
            stage=read_manifest(path).identity["stage"],
            checkpoint=Checkpoint(
                path=path,
                fingerprint=read_manifest(path).fingerprint,
                stage=read_manifest(path).identity["stage"],
                precision="fp32",
            ),
            cached=False,
            seconds=1.0,
        )
        for path in made
    )
    run = RunRecord(
        id=run_name(number),
        state="completed",
        recipe=Recipe.model_validate(tiny_recipe(Path("model"), Path("data"))),
        recipe_name="tiny",
        started=f"2026-01-{number + 1:02}T00:00:00+00:00",
        stages=stages,
        needs=needs,
    )
    return save_run(run, store.home).id


def run_name(number: int) -> str:
    return f"202601{number + 1:02}-000000-00000000"


def made(store: ArtifactStore, stage: str, number: int, **more: Any) -> Path:
    """A checkpoint that the run of that number has made."""
    return publish(store, stage, number, run=run_name(number), **more)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """Four runs that have trained SFT and DPO each, from a base model of a package and a dataset of the hub."""
    store = ArtifactStore(tmp_path / "home")
    base = publish(store, "base", origin={"source": "package", "name": "model"})
    data = publish(store, "dataset", origin={"path": "org/rows"})
    for number in range(4):
        sft = made(store, "sft", number, parents={"policy": base.name, "dataset": data.name})
        dpo = made(store, "dpo", number, parents={"policy": sft.name, "dataset": data.name})
        judged = {"checkpoint": dpo.name, "prompts": data.name}
        publish(store, "evaluation", number, {"result.json": b"{}"}, parents=judged)
        record(store, number, sft, dpo)
    monkeypatch.setenv("ALIGN_HOME", str(store.home))
    return store


def goes(store: ArtifactStore, **options: Any) -> set[str]:
    plan = plan_prune(store, **{"keep": 1, "older_than_days": 7, "drop_merged": False} | options)
    return {item.path.name for item in plan.items if item.action != "keep"}


def prune(store: ArtifactStore, **options: Any) -> int:
    plan = plan_prune(store, **{"keep": 1, "older_than_days": 7, "drop_merged": False} | options)
    return carry_out(store, plan, "a test", lambda: nullcontext(ChildOptions(threads=2)), lambda said: None)


def test_the_newest_runs_and_their_ancestors_stay(store: ArtifactStore) -> None:
    older = {name_of(stage, number) for stage in ("sft", "dpo", "evaluation") for number in (0, 1)}
    assert goes(store, keep=2) == older
    assert goes(store, keep=4) == set()


def test_a_dry_run_writes_nothing(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = content_of(store.home)
    assert main(["prune", "--keep", "1"]) == 0
    said = capsys.readouterr().out
    assert "nothing was removed, `align prune --yes` does it" in said
    assert name_of("dpo", 0) in said
    assert content_of(store.home) == before


def test_what_goes_leaves_its_manifest(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_prune(store, 1, 7, drop_merged=False)
    assert main(["prune", "--keep", "1", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["freed_bytes"] == told["frees_bytes"] == plan.frees_bytes > 0
    gone = store.folder("checkpoint", name_of("dpo", 0))
    assert sorted(path.name for path in gone.iterdir()) == [MANIFEST, "pruned.json"]
    assert damage(gone) == []
    assert store.find("checkpoint", gone.name) is None
    assert ancestry(store, gone).nodes[name_of("sft", 0)].state == "pruned"
    assert store.find("checkpoint", name_of("dpo", 3))
    assert prune(store) == 0


def test_aliases_keep_what_they_point_to_and_pointed_to(store: ArtifactStore) -> None:
    assert main(["promote", name_of("dpo", 0)]) == 0
    assert main(["promote", name_of("dpo", 1)]) == 0
    kept = {name_of(stage, number) for stage in ("sft", "dpo", "evaluation") for number in (0, 1, 3)}
    assert not goes(store) & kept
    assert name_of("dpo", 2) in goes(store)


def test_what_a_run_at_work_needs_stays(store: ArtifactStore) -> None:
    run = record(store, 0, needs=(name_of("sft", 0),))
    hold_run(run, store.home)
    try:
        assert name_of("sft", 0) not in goes(store, keep=0)
        assert name_of("sft", 1) in goes(store, keep=0)
    finally:
        release_run(run)


def test_what_a_run_began_to_need_after_the_plan_stays(store: ArtifactStore) -> None:
    plan = plan_prune(store, 1, 7, drop_merged=False)
    run = record(store, 0, needs=(name_of("sft", 0),))
    hold_run(run, store.home)
    try:
        carry_out(store, plan, "a test", options, lambda said: None)
    finally:
        release_run(run)
    assert store.find("checkpoint", name_of("sft", 0))
    assert is_pruned(store.folder("checkpoint", name_of("dpo", 0)))


@pytest.mark.parametrize(
    ("stage", "origin"),
    [("base", {"source": "folder", "name": "mine"}), ("dataset", {"path": "a.jsonl", "files": {"a.jsonl": "0"}})],
)
def test_what_cannot_be_made_again_stays(store: ArtifactStore, stage: str, origin: dict[str, Any]) -> None:
    path = publish(store, stage, 9, origin=origin)
    assert path.name not in goes(store, keep=0)


def test_a_checkpoint_of_elsewhere_or_without_its_base_stays(store: ArtifactStore) -> None:
    imported = publish(store, "grpo", 9, run="20250101-000000-ffffffff")
    assert imported.name not in goes(store, keep=0)
    shutil.rmtree(store.folder("base", name_of("base")))
    assert not {name_of("sft", 0), name_of("dpo", 0)} & goes(store, keep=0)


def age(path: Path, days: float) -> None:
    for each in (*path.rglob("*"), path):
        moment = each.stat().st_mtime - days * 86_400
        os.utime(each, (moment, moment))


@pytest.mark.parametrize("place", [".partial", ".damaged", ".replaced"])
def test_what_lies_aside_goes_when_it_is_old(store: ArtifactStore, place: str) -> None:
    aside = store.home / "checkpoints" / place / "dpo-old"
    (aside / "trainer").mkdir(parents=True)
    (aside / "trainer" / "weights").write_bytes(b"x" * 100)
    assert aside.name not in goes(store, keep=4)
    age(aside, 8)
    assert aside.name in goes(store, keep=4)
    assert aside.name not in goes(store, keep=4, older_than_days=9)
    with store.lock("checkpoint", aside.name, "a test", lambda who: None):
        assert aside.name not in goes(store, keep=4)
    assert prune(store, keep=4) == 100
    assert not aside.exists()


def test_links_are_not_followed(store: ArtifactStore, tmp_path: Path) -> None:
    outside = Path(shutil.copytree(store.folder("checkpoint", name_of("dpo", 0)) / "adapter", tmp_path / "outside"))
    shutil.rmtree(store.folder("checkpoint", name_of("dpo", 0)) / "adapter")
    (store.folder("checkpoint", name_of("dpo", 0)) / "adapter").symlink_to(outside)
    aside = store.home / "checkpoints" / ".damaged" / "link"
    aside.parent.mkdir(exist_ok=True)
    aside.symlink_to(tmp_path / "outside")
    before = content_of(outside)
    prune(store, older_than_days=0)
    assert content_of(outside) == before


def test_a_prune_that_died_is_finished_by_the_next(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(Exception):
        """The process is gone."""

    unlink, calls = Path.unlink, []

    def dying(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise Died
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(Died):
        prune(store)
    monkeypatch.undo()
    monkeypatch.setenv("ALIGN_HOME", str(store.home))
    assert all(damage(path) == [] for kind in ("checkpoint", "evaluation") for path in store.newest_first(kind))
    prune(store)
    assert goes(store) == set()


@settings(max_examples=25)
@given(
    parents=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    runs=st.lists(st.integers(0, 7), max_size=6),
    keep=st.integers(0, 3),
)
def test_nothing_that_stays_was_made_from_what_goes(
    tmp_path_factory: pytest.TempPathFactory, parents: list[int], runs: list[int], keep: int
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("root") / "home")
    base = publish(store, "base", origin={"source": "package", "name": "model"})
    folders: list[Path] = []
    for number, parent in enumerate(parents):
        policy = folders[parent % number] if number and parent % 3 else base
        folders.append(made(store, "sft", number, parents={"policy": policy.name}))
        record(store, number, *(folders[run] for run in runs if run % 8 < len(folders)))
    plan = plan_prune(store, keep, 7, drop_merged=False)
    going = {item.path.name for item in plan.items if item.action == "remove"}
    for item in plan.items:
        if item.action == "keep":
            assert not set(ancestry(store, item.path).nodes) & going


@pytest.mark.slow
def test_merged_weights_go_and_come_back_byte_for_byte(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing: what adapter and parent give back goes; a reading command and a run make it whole again."""
    store = ArtifactStore(home)
    monkeypatch.setenv("ALIGN_HOME", str(home))
    folders = {path.name.partition("-")[0]: path for path in store.newest_first("checkpoint")}
    before = {stage: file_digest(path / "model.safetensors") for stage, path in folders.items()}
    assert main(["promote", "grpo"]) == 0
    assert main(["prune", "--drop-merged", "--yes"]) == 0
    assert {stage for stage, path in folders.items() if is_pruned(path)} == {"sft", "reward", "dpo"}
    assert not any((folders[stage] / "model.safetensors").exists() for stage in ("sft", "reward", "dpo"))
    assert all(obstacle(store, path) == "" for path in folders.values())
    assert main(["chat", "dpo", "--prompt", "1 + 1", "--max_new_tokens", "2"]) == 0
    (path,) = home.glob("runs/*/run.json")
    recipe = RunRecord.model_validate_json(path.read_bytes()).recipe
    assert run_align(recipe, home).record.state == "completed"
    assert {stage: file_digest(path / "model.safetensors") for stage, path in folders.items()} == before
