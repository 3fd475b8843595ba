"""Stages that are not finished: what machines hand on of them while they are made, and what is left when they are."""

import time
from pathlib import Path

import pytest

from models.errors import StageError
from tasks.checkpoints import SEAL, TRAINER, last_whole_checkpoint, seal
from tasks.ledger import LEDGER
from tasks.remote import sharing
from tasks.remote.remote import Remote
from tasks.remote.sharing import keep_safe, send_missing, sole_maker
from tasks.store import MANIFEST, ArtifactStore
from tests.folders import publish
from tests.remotes import DAMAGES, LEASE_SECONDS, at_length

in_a_folder = pytest.mark.parametrize("objects", ["file"], indirect=True)


def trainer_checkpoint(workspace: Path, step: int) -> Path:
    folder = workspace / TRAINER / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes([step]) * 100)
    seal(folder, step, 100, float(step))
    return folder


def test_the_newest_trainer_checkpoint_goes_to_whoever_takes_over(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    ours, theirs = (store.partial("checkpoint", "sft-1") for store in (here, there))
    for step in (2, 4, 6):
        trainer_checkpoint(ours, step)
        (ours / LEDGER).write_text(f"attempt {step}\n")
        remote.send_unfinished("checkpoint", "sft-1", ours)
    assert set(remote.objects.names("unfinished/checkpoint-sft-1")) == {
        "attempts.jsonl",
        "checkpoint-4",
        "checkpoint-6",
    }
    (theirs / TRAINER).mkdir(parents=True)
    (theirs / LEDGER).write_text("attempt 0\n")
    remote.fetch_unfinished("checkpoint", "sft-1", theirs)
    whole = last_whole_checkpoint(theirs / TRAINER)
    assert whole and whole[1].step == 6
    assert (theirs / LEDGER).read_text() == "attempt 6\nattempt 0\n"
    (theirs / LEDGER).write_text("")
    remote.fetch_unfinished("checkpoint", "sft-1", theirs)
    assert (theirs / LEDGER).read_text() == ""  # nothing there is further


@at_length
@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("file", ["optimizer.pt", SEAL])
def test_a_damaged_trainer_checkpoint_is_passed_over(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, harm: object, file: str
) -> None:
    workspace = here.partial("checkpoint", "sft-1")
    for step in (2, 4):
        trainer_checkpoint(workspace, step)
        remote.send_unfinished("checkpoint", "sft-1", workspace)
    harm(remote.objects, f"unfinished/checkpoint-sft-1/checkpoint-4/{file}")  # type: ignore[operator]
    other = there.partial("checkpoint", "sft-1")
    remote.fetch_unfinished("checkpoint", "sft-1", other)
    found = last_whole_checkpoint(other / TRAINER)
    assert found and found[1].step == 2


@pytest.mark.slow
@at_length
def test_what_is_trained_is_sent_while_it_is_held(here: ArtifactStore, remote: Remote) -> None:
    with sole_maker(here, remote, "checkpoint", "sft-1", "test", pytest.fail) as check:
        trainer_checkpoint(here.partial("checkpoint", "sft-1"), 2)
        time.sleep(LEASE_SECONDS + 2)
        check()  # renewed meanwhile
        done = remote.steps_done("checkpoint", "sft-1")
        assert done and done.step == 2
    remote.discard_unfinished("checkpoint", "sft-1")
    assert remote.steps_done("checkpoint", "sft-1") is None


@in_a_folder
def test_a_lease_is_renewed_while_trainer_checkpoints_are_fetched(
    here: ArtifactStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = Remote(remote.objects, lease_seconds=0.6)
    monkeypatch.setattr(hasty, "fetch_unfinished", lambda *unfinished: time.sleep(1.2))
    with sole_maker(here, hasty, "checkpoint", "sft-1", "test", pytest.fail) as check:
        check()


@in_a_folder
def test_what_could_not_be_sent_is_sent_later(
    here: ArtifactStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_SECONDS_BETWEEN_LOOKS", 0.05)
    send, fails = remote.send_unfinished, [True]

    def at_first_in_vain(*unfinished: object) -> None:
        if fails and fails.pop():
            raise StageError("it does not answer")
        send(*unfinished)  # type: ignore[arg-type]

    monkeypatch.setattr(remote, "send_unfinished", at_first_in_vain)
    with sole_maker(here, remote, "checkpoint", "sft-1", "test", pytest.fail):
        trainer_checkpoint(here.partial("checkpoint", "sft-1"), 2)
        time.sleep(0.3)
        done = remote.steps_done("checkpoint", "sft-1")
    assert done and done.step == 2


@in_a_folder
@pytest.mark.parametrize("way", ["the next run of it", "the end of a run"])
def test_nothing_is_left_to_go_on_from_once_a_folder_is_safe(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, way: str
) -> None:
    path = publish(here, "sft")
    remote.send(here, "checkpoint", path.name)
    remote.objects.remove(f"checkpoints/{path.name}/{MANIFEST}")  # as if it had been cut off before that
    trainer_checkpoint(here.partial("checkpoint", path.name), 4)
    remote.send_unfinished("checkpoint", path.name, here.partial("checkpoint", path.name))

    def keep() -> None:
        if way == "the end of a run":
            send_missing(here, remote)
        else:
            keep_safe(here, remote, "checkpoint", path.name, pytest.fail, is_new=False)

    anew = remote.lease(there, f"checkpoint-{path.name}", "a forced training")
    anew.acquire(pytest.fail)
    keep()
    assert remote.has(path) and remote.unfinished()  # another machine is at work on it
    anew.release()
    keep()
    assert not remote.unfinished()
