"""What was pruned is neither damaged nor served; its weights come back byte for byte, or are trained again."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows.__main__ import main
from models.artifacts import Manifest, Pruned
from models.errors import DamagedArtifact, InputError
from models.recipe import Recipe
from settings.settings import Settings
from tasks.child_main import ChildOptions
from tasks.execution import Execution, plan_execution
from tasks.finding import resolve
from tasks.forecast import forecast
from tasks.making import find_or_make
from tasks.preflight import preflight
from tasks.pruned import PRUNED, is_pruned, mark_pruned
from tasks.restoring import merged_weights, obstacle, restore
from tasks.store import MANIFEST, ArtifactStore, damage, read_manifest
from tasks.telling import Teller
from tests.folders import content_of, drop, manifest_of, name_of, publish
from tests.tiny import run_align

WEIGHTS = "model.safetensors"


def make_whole(store: ArtifactStore, folder: Path, threads: int = 2) -> list[str]:
    said: list[str] = []
    restore(store, folder, "a test", lambda: nullcontext(ChildOptions(threads=threads)), said.append)
    return said


@pytest.fixture
def dpo(store: ArtifactStore) -> Path:
    return store.folder("checkpoint", name_of("dpo"))


@pytest.mark.parametrize("files", [(), (WEIGHTS,)], ids=["whole", "weights"])
def test_what_was_pruned_is_neither_damaged_nor_served(store: ArtifactStore, dpo: Path, files: tuple[str, ...]) -> None:
    drop(dpo, *files)
    assert damage(dpo) == []
    assert store.find("checkpoint", dpo.name) is None
    assert (dpo / MANIFEST).exists()
    assert store.locate(dpo.name) == dpo
    assert publish(store, "grpo", parents={"policy": dpo.name}).exists()
    assert name_of("sft") in read_manifest(store.folder("checkpoint", name_of("grpo"))).ancestors


def test_what_was_not_pruned_must_still_be_whole(dpo: Path) -> None:
    drop(dpo, WEIGHTS)
    (dpo / "config.json").write_text("{ }")
    assert len(damage(dpo)) == 1


def test_a_mark_that_cannot_be_read_is_damage(dpo: Path) -> None:
    drop(dpo, WEIGHTS)
    (dpo / PRUNED).write_text("{")
    assert "not the mark of a pruned folder" in damage(dpo)[0]


def test_the_commands_say_so(store: ArtifactStore, dpo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop(dpo)
    assert main(["verify"]) == 0
    assert f"{dpo}: pruned on 2026-01-02, 3 files: for a test" in capsys.readouterr().out
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pruned"][str(dpo)]["why"] == "for a test"
    assert main(["lineage", "dpo"]) == 0
    assert "pruned, its manifest stays" in capsys.readouterr().out
    for command in (["chat", "dpo", "--prompt", "x"], ["promote", "dpo"]):
        assert main(command) == 2
        said = capsys.readouterr()
        assert "was pruned on 2026-01-02 and cannot be rebuilt here: more was removed" in said.err
        assert "run its recipe again" in said.err


def test_a_stage_means_its_newest_whole_checkpoint(store: ArtifactStore, dpo: Path) -> None:
    newer = publish(store, "dpo", 1)
    assert resolve(store, "dpo")[0] == newer
    drop(newer)
    assert resolve(store, "dpo")[0] == dpo
    assert resolve(store, newer.name)[0] == newer


def test_a_new_one_takes_the_place_of_the_empty_shell(store: ArtifactStore, dpo: Path) -> None:
    drop(dpo)
    publish(store, "dpo", parents={"policy": name_of("sft")})
    assert store.find("checkpoint", dpo.name)
    assert list(store.home.glob("checkpoints/.replaced/*")) == []


def test_what_did_not_go_comes_back_without_computing(store: ArtifactStore, dpo: Path) -> None:
    names = tuple(entry.path for entry in read_manifest(dpo).files)
    mark_pruned(dpo, Pruned(files=names, when="2026-01-02T00:00:00+00:00", why="for a test"))
    assert store.find("checkpoint", dpo.name) is None
    assert make_whole(store, dpo) == []
    assert store.find("checkpoint", dpo.name)


def test_only_weights_can_be_rebuilt_and_only_with_adapter_and_parent(store: ArtifactStore, dpo: Path) -> None:
    sft, base = store.folder("checkpoint", name_of("sft")), store.folder("base", name_of("base"))
    drop(dpo, WEIGHTS)
    drop(sft, WEIGHTS)
    assert obstacle(store, dpo) == ""
    drop(base)
    said = f"{sft.name}, its parent, was pruned: {base.name}, its parent, was pruned: more was removed"
    assert obstacle(store, dpo).startswith(said)
    base.rename(store.home / "elsewhere")
    assert f"its parent {base.name} is not in" in obstacle(store, dpo)
    with pytest.raises(InputError, match="cannot be rebuilt here"):
        make_whole(store, dpo)
    assert is_pruned(dpo)


@pytest.mark.slow
def test_one_process_merges_for_a_stage_that_several_train(
    store: ArtifactStore, dpo: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[int] = []

    def note(function: object, arguments: object, options: ChildOptions, *_: object) -> None:
        processes.append(options.launch.processes)
        raise InputError("the merge is not what this is about")

    def train(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        processes.append(options.launch.processes)
        return read_manifest(dpo)

    drop(dpo, WEIGHTS)
    monkeypatch.setattr("tasks.child.run_in_child", note)
    settings = execution.settings.model_copy(update={"processes": 4})
    several = execution.model_copy(update={"settings": settings}).of_training()
    with disable_run_logger():
        find_or_make("checkpoint", dpo.name, several, train, lambda path, manifest: manifest)
    assert processes == [1, 4]


def test_merged_weights() -> None:
    files = ["model.safetensors", "adapter/adapter_model.safetensors", "config.json"]
    entries = [{"path": name, "size_bytes": 1, "sha256": "0" * 64} for name in files]
    assert merged_weights(manifest_of(files=entries, parents={"policy": "x"})) == ["model.safetensors"]
    assert merged_weights(manifest_of(files=entries)) == []
    assert merged_weights(manifest_of(files=entries[::2], parents={"policy": "x"})) == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_weights_come_back_byte_for_byte(home: Path, threads: int) -> None:
    """All four stages at once: GRPO's parent is DPO, whose parent is SFT, which all have to come back first."""
    store, before = ArtifactStore(home), content_of(home)
    folders = {path.name.partition("-")[0]: path for path in home.glob("checkpoints/*-*")}
    for folder in folders.values():
        drop(folder, WEIGHTS)
    said = make_whole(store, folders["grpo"], threads)
    assert [line.split()[1].partition("-")[0] for line in said] == ["sft", "dpo", "grpo"]
    make_whole(store, folders["reward"], threads)
    assert content_of(home) == before


@pytest.mark.slow
def test_a_run_takes_what_it_can_rebuild(home: Path, recipe: Recipe) -> None:
    kinds = ("base", "datasets", "checkpoints", "evaluations")
    before = {kind: content_of(home / kind) for kind in kinds}
    for stage in ("sft", "dpo"):
        drop(next(home.glob(f"checkpoints/{stage}-*")), WEIGHTS)
    settings = Settings(home=home)
    stages = forecast(recipe, preflight(recipe, settings).datasets, plan_execution(recipe, settings))
    assert {stage.stage: stage.state for stage in stages} == {
        "sft": "rebuilds", "reward": "cached", "dpo": "rebuilds", "grpo": "cached"
    }  # fmt: skip
    record = run_align(recipe, home).record
    assert [stage.cached for stage in record.stages] == [True] * 5
    assert {kind: content_of(home / kind) for kind in kinds} == before


@pytest.mark.slow
def test_what_does_not_come_back_the_same_is_thrown_away_and_trained_again(home: Path, recipe: Recipe) -> None:
    store = ArtifactStore(home)
    (sft,) = home.glob("checkpoints/sft-*")
    (reward,) = home.glob("checkpoints/reward-*")
    weights = (sft / WEIGHTS).read_bytes()
    drop(sft, WEIGHTS)
    manifest = read_manifest(sft)
    wrong = {WEIGHTS: {"sha256": "0" * 64}}
    entries = tuple(entry.model_copy(update=wrong.get(entry.path, {})) for entry in manifest.files)
    other = manifest.model_copy(update={"files": entries, "digest": ""}).sealed()
    (sft / MANIFEST).write_text(other.model_dump_json())
    with pytest.raises(DamagedArtifact, match=f"{WEIGHTS} is not what it was"):
        make_whole(store, sft)
    assert is_pruned(sft)
    assert list(home.glob("checkpoints/.partial/*")) == []
    short = recipe.model_copy(update={"reward": None, "dpo": None, "grpo": None})
    record = run_align(short, home).record
    assert [stage.cached for stage in record.stages] == [True, False]
    assert (sft / WEIGHTS).read_bytes() == weights
    assert list(home.glob("checkpoints/.replaced/*")) == []
    assert damage(reward) == []


@pytest.mark.slow
def test_chat_rebuilds_first(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(home))
    (dpo,) = home.glob("checkpoints/dpo-*")
    assert main(["chat", "dpo", "--prompt", "1 + 1", "--max_new_tokens", "4"]) == 0
    reply = capsys.readouterr().out
    drop(dpo, WEIGHTS)
    assert main(["chat", "dpo", "--prompt", "1 + 1", "--max_new_tokens", "4"]) == 0
    said = capsys.readouterr()
    assert said.out == reply
    assert f"rebuilding {dpo.name} from sft-" in said.err
    assert damage(dpo) == []
    assert not is_pruned(dpo)


@pytest.mark.slow
def test_weights_that_were_trained_in_four_bits_come_back(prefect_api: None, recipe: Recipe, tmp_path: Path) -> None:
    home = tmp_path / "home"
    changes = {"reward": None, "dpo": None, "grpo": None, "quantization": {"quant_type": "nf4"}}
    quantised = Recipe.model_validate(recipe.model_dump() | changes)
    sft = run_align(quantised, home).record.stages[1].checkpoint.path
    before = content_of(sft)
    drop(sft, WEIGHTS)
    make_whole(ArtifactStore(home), sft)
    assert content_of(sft) == before
