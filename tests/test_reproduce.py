"""Training again from a manifest alone: the same weights on the same machine, and the truth where they are not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flows.__main__ import main
from flows.reproduce import reproduce
from models.errors import InputError
from models.run import RunRecord
from settings.settings import Settings
from tasks.files import file_digest, replace_file
from tasks.finding import resolve
from tasks.reproducing import _promised, ancestry, check_reproduction, training_input
from tasks.store import MANIFEST, ArtifactStore, read_manifest

pytestmark = pytest.mark.slow


def change_weights(folder: Path) -> None:
    """Scale a checkpoint's weights, as if it had been trained elsewhere: its manifest agrees with them."""
    file = folder / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    manifest = read_manifest(folder)
    files = tuple(
        entry.model_copy(update={"sha256": file_digest(file)}) if entry.path == file.name else entry
        for entry in manifest.files
    )
    machine = manifest.machine | {"name": "another machine"}
    changed = manifest.model_copy(update={"files": files, "machine": machine, "versions": {"trl": "1.15.0"}})
    replace_file(folder / MANIFEST, changed.sealed().model_dump_json())


def folder_of(home: Path, stage: str) -> Path:
    return resolve(ArtifactStore(home), stage)[0]


def test_all_stages_come_out_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(home))
    name = folder_of(home, "grpo").name
    assert main(["reproduce", "grpo", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["checkpoint"], told["same"]) == (name, True)
    assert [stage["verdict"] for stage in told["stages"]] == ["same"] * 4
    assert {stage["name"].partition("-")[0] for stage in told["stages"]} == {"sft", "reward", "dpo", "grpo"}
    assert not any((home / "reproductions").iterdir())


def test_other_weights_are_told_with_what_has_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(home))
    change_weights(folder_of(home, "sft"))
    found = reproduce("sft")
    (stage,) = found.stages
    assert not found.same
    assert stage.verdict == "different"
    assert stage.relative_difference == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert "trl 1.15.0 -> " in stage.changes[0]
    assert any(change.startswith("name another machine -> ") for change in stage.changes)


def test_a_lost_ancestor_is_trained_again_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(home))
    shutil.rmtree(folder_of(home, "sft"))
    found = reproduce("dpo")
    assert [stage.verdict for stage in found.stages] == ["not compared", "same"]


@pytest.mark.parametrize(
    ("lost", "rule"),
    [("base", "came from a local folder"), ("datasets", "its rows came from local files")],
)
def test_what_cannot_be_fetched_again_is_refused(home: Path, lost: str, rule: str) -> None:
    shutil.rmtree(home / lost)
    with pytest.raises(InputError, match=rf"not whole in this artifact root.*{rule}.*`align import`"):
        check_reproduction("dpo", Settings(home=home))


def test_another_version_of_the_code_is_refused(
    finished_run: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.stages.DPOInput.code_version", 99)
    with pytest.raises(InputError, match=r"dpo-\w+ was made by another version of this stage's code.*check out commit"):
        check_reproduction("dpo", Settings(home=finished_run[0]))


def test_a_base_model_was_not_trained(finished_run: tuple[Path, RunRecord]) -> None:
    with pytest.raises(InputError, match="was converted, not trained"):
        check_reproduction("base", Settings(home=finished_run[0]))


def test_no_alarm_stops_what_is_made_again(finished_run: tuple[Path, RunRecord]) -> None:
    store = ArtifactStore(finished_run[0])
    steps = ancestry(store, "grpo")
    made = {step.name: _promised(step, store) for step in steps}
    inputs = [training_input(step, made) for step in steps if step.record.kind == "checkpoint"]
    assert [stage.alarms.stop for stage in inputs] == [()] * 4
