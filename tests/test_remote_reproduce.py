"""Training again where the artifact root is shared: apart from it, and from files that may lie in the remote."""

from pathlib import Path

import pytest

from models.run import RunRecord
from settings.settings import Settings
from tasks.finding import resolve
from tasks.remote.catalogue import refresh
from tasks.remote.objects import ObjectStore
from tasks.remote.remote import Remote
from tasks.remote.sharing import send_missing
from tasks.reproducing import Step, found_whole, scratch_execution
from tasks.store import ArtifactStore, read_manifest
from tests.folders import family


def step_of(path: Path) -> Step:
    """The part of an ancestry that a folder is."""
    manifest = read_manifest(path)
    return Step(path.name, manifest.as_ancestor(), manifest, "sft")


@pytest.mark.parametrize("objects", ["file"], indirect=True)
def test_it_is_trained_in_a_root_that_nobody_shares(here: ArtifactStore, remote: Remote) -> None:
    step = step_of(family(here)["sft"])
    execution = scratch_execution([step], Settings(home=here.home, remote=remote.url))
    assert execution.settings.home != here.home and execution.settings.remote is None


@pytest.mark.parametrize("objects", ["file"], indirect=True)
def test_files_that_lie_nowhere_are_not_taken(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    steps = {stage: step_of(path) for stage, path in family(here).items() if stage in ("base", "dataset")}
    send_missing(here, remote)
    refresh(there, remote)
    assert all(found_whole(step, there) for step in steps.values())
    remote.objects.remove("base")
    assert found_whole(steps["base"], there) is None
    assert found_whole(steps["dataset"], there)


@pytest.mark.slow
def test_what_another_machine_has_made_is_trained_again(
    finished_run: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.reproduce import reproduce

    remote = Remote(ObjectStore((tmp_path / "share").as_uri()), lease_seconds=60)
    made = ArtifactStore(finished_run[0], remote)
    send_missing(made, remote)
    sent = remote.objects.sizes("checkpoints")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("ALIGN_REMOTE", remote.url)
    refresh(ArtifactStore(tmp_path / "other", remote), remote)
    (stage,) = reproduce("sft").stages
    assert stage.verdict == "same"
    assert stage.seconds != resolve(made, "sft")[1].metrics["seconds"]
    assert remote.objects.sizes("checkpoints") == sent
