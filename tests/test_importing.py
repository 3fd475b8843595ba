"""Import: what was copied from another root comes in whole, under its own name, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.__main__ import main
from models.artifacts import SCHEMA_VERSION
from models.errors import InputError
from models.fingerprint import canonical_json, fingerprint
from models.recipe import Recipe
from models.run import RunRecord
from tasks.finding import resolve
from tasks.importing import import_folder
from tasks.store import MANIFEST, ArtifactStore, damage
from tests.folders import content_of, family, name_of, publish
from tests.test_store import DAMAGES, claim_a_later_layout
from tests.tiny import run_align


@pytest.fixture
def other(tmp_path: Path) -> ArtifactStore:
    """Another machine's artifact root."""
    store = ArtifactStore(tmp_path / "other")
    family(store)
    return store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """The artifact root that the command imports into; it is not there yet."""
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def dpo(other: ArtifactStore) -> Path:
    return other.folder("checkpoint", name_of("dpo"))


def test_a_folder_comes_in_as_it_is(
    store: ArtifactStore, dpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(dpo, tmp_path / "stick" / "our best model")
    assert main(["import", str(copied)]) == 0
    said = capsys.readouterr().out
    assert f"checkpoint {dpo.name}: imported" in said
    assert all(name in said for name in (name_of("sft"), name_of("base"), name_of("dataset")))
    assert content_of(store.folder("checkpoint", dpo.name)) == content_of(dpo)
    assert store.find("checkpoint", dpo.name)
    assert list(store.home.glob("checkpoints/.partial/*")) == []
    assert main(["lineage", "dpo", "--json"]) == 0


def test_what_is_there_already_stays(store: ArtifactStore, dpo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(dpo)]) == 0
    mine = store.folder("checkpoint", dpo.name)
    made = mine.stat().st_ino
    capsys.readouterr()
    assert main(["import", str(dpo), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folders"] == [{"name": dpo.name, "kind": "checkpoint", "outcome": "there"}]
    assert sorted(result["missing"]) == sorted([name_of("sft"), name_of("base"), name_of("dataset")])
    assert mine.stat().st_ino == made


def test_ancestors_come_along(store: ArtifactStore, dpo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(dpo), "--ancestors", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = {name_of(stage) for stage in ("dpo", "sft", "base", "dataset")}
    assert {folder["name"] for folder in result["folders"]} == names
    assert result["missing"] == []
    assert all(damage(path) == [] for name in names if (path := store.locate(name) or Path("missing")))
    assert not store.locate(name_of("reward"))


def test_ancestors_of_an_old_layout_come_along(store: ArtifactStore, other: ArtifactStore, dpo: Path) -> None:
    for path in other.home.glob(f"*/*/{MANIFEST}"):
        content = json.loads(path.read_text()) | {"schema_version": 1, "digest": ""}
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "ancestors"}))
    result = import_folder(store, dpo, True, print, print)
    assert {folder.name for folder in result.folders} == {name_of(stage) for stage in ("dpo", "sft", "base", "dataset")}


def test_ancestors_that_are_not_beside_it_are_told_of(store: ArtifactStore, other: ArtifactStore, dpo: Path) -> None:
    shutil.rmtree(other.folder("dataset", name_of("dataset")))
    assert import_folder(store, dpo, True, print, print).missing == (name_of("dataset"),)


def test_a_newest_checkpoint_is_not_the_one_imported_last(store: ArtifactStore, other: ArtifactStore) -> None:
    for number in (1, 2):
        made = publish(other, "grpo", number)
        os.utime(made / MANIFEST, (number, number))
    for number in (2, 1):
        import_folder(store, other.folder("checkpoint", name_of("grpo", number)), False, print, print)
    assert resolve(store, "grpo")[0].name == name_of("grpo", 2)


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("of", ["dpo", "sft"])
def test_a_damaged_folder_is_refused_and_nothing_written(
    store: ArtifactStore,
    other: ArtifactStore,
    dpo: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    of: str,
) -> None:
    place = other.folder("checkpoint", name_of(of))
    (place / "adapter" / "other").parent.mkdir(exist_ok=True)
    harm(place)
    assert main(["import", str(dpo), "--ancestors"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert str(place) in said.err
    assert "nothing was imported" in said.err
    assert not store.home.exists()


def test_a_newer_layout_is_refused(store: ArtifactStore, dpo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim_a_later_layout(dpo)
    assert main(["import", str(dpo)]) == 2
    assert f"layout {SCHEMA_VERSION + 1} is newer than this version reads" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "says"), [("nowhere", "no such folder"), (".", "has no manifest.json")])
def test_what_is_no_finished_folder_is_refused(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, says: str
) -> None:
    assert main(["import", str(tmp_path / folder)]) == 2
    assert says in capsys.readouterr().err
    assert not store.home.exists()


def test_a_damaged_one_here_is_made_whole(store: ArtifactStore, dpo: Path) -> None:
    import_folder(store, dpo, False, print, print)
    (store.folder("checkpoint", dpo.name) / "config.json").unlink()
    assert import_folder(store, dpo, False, print, print).folders[0].outcome == "imported"
    assert store.find("checkpoint", dpo.name)
    assert len(list(store.home.glob("checkpoints/.damaged/*"))) == 1


def forge(folder: Path, **changes: object) -> None:
    """Change a manifest and seal it again, as somebody who means harm would."""
    content = json.loads((folder / MANIFEST).read_text()) | changes
    content["fingerprint"] = fingerprint(content["identity"])
    digest = fingerprint({key: value for key, value in content.items() if key != "digest"})
    (folder / MANIFEST).write_text(canonical_json(content | {"digest": digest}))


@pytest.mark.parametrize("path", ["../../../stolen", "/stolen", "adapter/../../stolen"])
def test_no_file_leads_out_of_the_folder(store: ArtifactStore, dpo: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "stolen").write_text("x")
    forge(dpo, files=[{"path": path, "size_bytes": 1, "sha256": "0" * 64}])
    with pytest.raises(InputError, match="leads out of the folder"):
        import_folder(store, dpo, False, print, print)
    assert not store.home.exists()


def test_no_stage_leads_out_of_the_root(store: ArtifactStore, dpo: Path) -> None:
    forge(dpo, identity={"stage": "../../evil"})
    with pytest.raises(InputError, match=r"unknown stage '\.\./\.\./evil'"):
        import_folder(store, dpo, False, print, print)


def test_ancestors_lead_out_of_no_root(store: ArtifactStore, other: ArtifactStore, dpo: Path, tmp_path: Path) -> None:
    stranger = publish(ArtifactStore(tmp_path / "stranger"), "sft", 9)
    entry = json.loads((dpo / MANIFEST).read_text())["ancestors"][name_of("sft")]
    forge(dpo, ancestors={f"../../stranger/checkpoints/{stranger.name}": entry})
    result = import_folder(store, dpo, True, print, print)
    assert [folder.name for folder in result.folders] == [dpo.name]


def test_linked_files_come_in_as_files(store: ArtifactStore, dpo: Path, tmp_path: Path) -> None:
    before = content_of(dpo)
    (dpo / "model.safetensors").rename(tmp_path / "blob")
    (dpo / "model.safetensors").symlink_to(tmp_path / "blob")
    import_folder(store, dpo, False, print, print)
    mine = store.folder("checkpoint", dpo.name)
    assert content_of(mine) == before
    assert not any(path.is_symlink() for path in mine.rglob("*"))


@pytest.mark.slow
def test_a_run_takes_what_was_imported(
    finished_run: tuple[Path, RunRecord], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, first = finished_run
    (sft,) = source.glob("checkpoints/sft-*")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    assert main(["import", str(shutil.copytree(sft, tmp_path / "stick" / sft.name))]) == 0
    short = recipe.model_copy(update={"reward": None, "dpo": None, "grpo": None})
    record = run_align(short, tmp_path / "home").record
    assert {stage.stage: stage.cached for stage in record.stages} == {"base": False, "sft": True}
    assert record.stages[1].checkpoint.fingerprint == first.stages[1].checkpoint.fingerprint
    assert list((tmp_path / "home" / "checkpoints").glob(".partial/*")) == []
