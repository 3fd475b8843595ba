"""Promotion where the artifact root is shared, and what is shared of aliases and runs."""

import time

import pytest

from models.artifacts import Kind, Manifest
from models.errors import AlignError
from tasks.aliases import read_alias
from tasks.promoting import promote
from tasks.remote import objects as requests
from tasks.remote.catalogue import changing_alias, refresh
from tasks.remote.lease import Lease
from tasks.remote.objects import ObjectStore, Unreachable
from tasks.remote.remote import Remote
from tasks.remote.sharing import send_missing
from tasks.run_record import RECORD, all_runs
from tasks.store import ArtifactStore
from tests.folders import family

pytestmark = pytest.mark.parametrize("objects", ["file"], indirect=True)


def test_a_checkpoint_is_fetched_before_the_right_to_the_alias_begins_to_expire(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(here)
    send_missing(here, remote)
    refresh(there, remote)
    hasty = Remote(remote.objects, lease_seconds=0.5)
    fetch = hasty.fetch

    def take_long(store: ArtifactStore, kind: Kind, name: str) -> Manifest | None:
        time.sleep(0.8)
        return fetch(store, kind, name)

    monkeypatch.setattr(hasty, "fetch", take_long)
    store = ArtifactStore(there.home, hasty)
    alias, changed = promote(store, there.folder("checkpoint", made["dpo"].name), "champion", pytest.fail)
    assert changed and alias.checkpoint == made["dpo"].name


@pytest.mark.parametrize("failing", [(Lease, "check"), (ObjectStore, "write")])
def test_an_alias_that_cannot_be_sent_stays_what_it_was(
    here: ArtifactStore, remote: Remote, monkeypatch: pytest.MonkeyPatch, failing: tuple[type, str]
) -> None:
    made = family(here)
    promote(here, made["sft"], "champion", pytest.fail)

    def fail(*asked: object) -> None:
        raise Unreachable("it does not answer")

    for alias in ("champion", "candidate"):
        changing = changing_alias(here, alias, "test", pytest.fail)
        with monkeypatch.context() as patch, pytest.raises(Unreachable), changing:
            patch.setattr(*failing, fail)
            (here.home / "aliases" / f"{alias}.json").write_text("?")
    champion = read_alias(here.home, "champion")
    assert champion and champion.checkpoint == made["sft"].name
    assert read_alias(here.home, "candidate") is None


def test_an_alias_that_cannot_be_read_there_is_not_overwritten(
    here: ArtifactStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_WAITS_SECONDS", ())
    remote.objects.write("aliases/champion.json", b"what another machine has decided")
    answer = remote.objects._fs.cat_file

    def throttled(path: str, **options: object) -> bytes:
        if path.endswith("champion.json"):
            raise OSError("Please reduce your request rate.")
        return bytes(answer(path, **options))

    with monkeypatch.context() as patch, pytest.raises(AlignError, match="reduce your request rate"):
        patch.setattr(remote.objects._fs, "cat_file", throttled)
        with changing_alias(here, "champion", "test", pytest.fail):
            pytest.fail("it was changed without knowing what it is")
    assert remote.objects.read("aliases/champion.json") == b"what another machine has decided"


def test_the_record_of_a_newer_version_is_left_out(here: ArtifactStore, remote: Remote) -> None:
    remote.objects.write(f"runs/one/{RECORD}", b'{"of_a_newer_version": true}')
    remote.objects.write("runs/one/report.html", b"")
    refresh(here, remote)
    assert all_runs(here.home) == ([], [])
    assert not (here.home / "runs" / "one").exists()
