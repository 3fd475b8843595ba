"""An artifact root that machines share: on a real S3 server, and in a folder."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.artifacts import FileEntry
from models.errors import DamagedArtifact, InputError, StageError
from models.retraining import Decision
from tasks.checkpoints import SEAL, TRAINER, last_whole_checkpoint, seal
from tasks.decisions import awaited, in_days, read_decision, write_decision
from tasks.files import file_digest
from tasks.ledger import LEDGER
from tasks.pruned import is_pruned
from tasks.remote import objects as requests
from tasks.remote.cache import make_room
from tasks.remote.catalogue import changing_alias, refresh
from tasks.remote.folders import fetch_folder, send_folder
from tasks.remote.lease import Lease
from tasks.remote.objects import ObjectStore, Unreachable
from tasks.remote.remote import Remote
from tasks.remote.sharing import keep_safe, send_missing, sole_maker
from tasks.restoring import restore
from tasks.store import MANIFEST, ArtifactStore, damage, read_manifest, utc_now
from tests.folders import FILES, KINDS, content_of, family, name_of, publish
from tests.object_server import BUCKET, ObjectServer

SECONDS = 3.0
"""Of a lease."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.kill()


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.slow), "file"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty place in each kind of remote."""
    if request.param == "file":
        return ObjectStore((tmp_path / "share").as_uri())
    request.getfixturevalue("server")
    return ObjectStore(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def remote(objects: ObjectStore) -> Remote:
    return Remote(objects, SECONDS)


@pytest.fixture
def here(tmp_path: Path, remote: Remote) -> ArtifactStore:
    return ArtifactStore(tmp_path / "here", remote)


@pytest.fixture
def there(tmp_path: Path, remote: Remote) -> ArtifactStore:
    """The artifact root of another machine."""
    return ArtifactStore(tmp_path / "there", remote)


def alter(objects: ObjectStore, key: str) -> None:
    objects.write(key, objects.read(key)[:-1] + b"?")


def truncate(objects: ObjectStore, key: str) -> None:
    objects.write(key, objects.read(key)[:-1])


DAMAGES = [alter, truncate, ObjectStore.remove]
at_length = pytest.mark.parametrize(
    "objects", [pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.faults]), "file"], indirect=True
)
"""In a folder each time; on the server with all the other faults, for it takes long."""


def test_of_many_that_create_at_once_one_succeeds(objects: ObjectStore) -> None:
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(objects.create("one", b"x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_objects_are_listed_read_and_removed(objects: ObjectStore) -> None:
    assert objects.names("a") == [] and objects.sizes("a") == {} and objects.read_all(["a/b"]) == {}
    objects.write("a/b", b"12")
    objects.write("a/c/d", b"345")
    assert objects.names("a") == ["b", "c"]
    assert objects.sizes("a") == {"b": 2, "c/d": 3}
    assert objects.read_all(["a/b", "a/c/d", "a/e"]) == {"a/b": b"12", "a/c/d": b"345"}
    objects.remove("a")
    objects.remove("a")
    assert objects.names("a") == []


@pytest.mark.parametrize("url", ["ftp://host/x", "bucket", "s3:/bucket"])
def test_an_unknown_scheme_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="no known scheme"):
        ObjectStore(url)


@pytest.mark.parametrize(("url", "extra"), [("gs://bucket/x", "gs"), ("az://box/x", "az")])
def test_a_missing_client_is_named(url: str, extra: str) -> None:
    with pytest.raises(InputError, match=rf"pip install 'alignment-pipeline\[{extra}\]'"):
        ObjectStore(url)


def test_a_remote_that_can_be_used_passes(remote: Remote) -> None:
    remote.check()
    assert remote.objects.names("locks") == []


def test_a_server_without_conditional_writes_is_refused(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "create", lambda self, key, content: True)
    with pytest.raises(InputError, match="two machines could train the same stage"):
        remote.check()


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told(server: ObjectServer) -> None:
    with pytest.raises(InputError, match="no such bucket"):
        Remote(ObjectStore("s3://nowhere/x"), SECONDS).check()


@pytest.mark.slow
def test_wrong_and_missing_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ObjectServer(checked=True)
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(InputError, match="refuses these credentials"):
            Remote(ObjectStore(f"s3://{BUCKET}/x"), SECONDS).check()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(InputError, match="no credentials"):
            Remote(ObjectStore(f"s3://{BUCKET}/x"), SECONDS).check()
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_that_goes_away_costs_nothing_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_WAITS_SECONDS", (0.1,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # those of the client by itself
    server = ObjectServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    remote, told = Remote(ObjectStore(f"s3://{BUCKET}/x"), SECONDS), list[str]()
    store = ArtifactStore(tmp_path / "home", remote)
    path = publish(store, "sft")
    remote.check()
    server.kill()
    keep_safe(store, remote, "checkpoint", path.name, told.append)
    assert "kept here and will be sent by the next run" in told[0]
    assert not remote.has(path) and damage(path) == []
    with pytest.raises(Unreachable, match="does not answer"):
        remote.check()
    server.start()
    send_missing(store, remote)
    assert remote.has(path)
    server.kill()


# --- folders


def listed(folder: Path) -> list[FileEntry]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "list"]
    return [
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_digest(path))
        for path in files
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "list").write_text("all")
    return folder


def test_a_folder_that_was_cut_off_goes_on_with_what_is_missing(objects: ObjectStore, folder: Path) -> None:
    files = listed(folder)
    first, rest = files[0], files[1:]
    (folder / rest[0].path).rename(folder / "gone")
    with pytest.raises(FileNotFoundError):
        send_folder(objects, folder, "f", files, "list")
    (folder / "gone").rename(folder / rest[0].path)
    assert "list" not in objects.names("f")
    assert send_folder(objects, folder, "f", files, "list") == sum(entry.size_bytes for entry in rest)
    assert objects.sizes("f") == {entry.path: entry.size_bytes for entry in files} | {"list": 3}
    assert objects.read(f"f/{first.path}") == (folder / first.path).read_bytes()


@at_length
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_object_is_never_served(objects: ObjectStore, folder: Path, tmp_path: Path, harm: object) -> None:
    files = listed(folder)
    send_folder(objects, folder, "f", files, "list")
    harm(objects, "f/model.safetensors")  # type: ignore[operator]
    with pytest.raises(DamagedArtifact, match=r"model\.safetensors"):
        fetch_folder(objects, "f", files, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "model.safetensors").exists()


# --- finished folders


def test_what_one_machine_makes_another_one_finds(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    path = publish(here, "sft")
    assert remote.send(here, "checkpoint", path.name) == sum(map(len, FILES.values()))
    assert remote.send(here, "checkpoint", path.name) == 0
    fetched = remote.fetch(there, "checkpoint", path.name)
    assert fetched == read_manifest(path)
    assert content_of(there.folder("checkpoint", path.name)) == content_of(path)
    assert not [*there.home.glob("checkpoints/.partial/*")]


@at_length
@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_folder_damaged_there_is_not_finished_and_is_sent_anew(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, harm: object, file: str
) -> None:
    path = publish(here, "sft")
    remote.send(here, "checkpoint", path.name)
    harm(remote.objects, f"checkpoints/{path.name}/{file}")  # type: ignore[operator]
    assert remote.fetch(there, "checkpoint", path.name) is None
    assert not there.folder("checkpoint", path.name).exists()
    assert not remote.has(path)
    assert remote.send(here, "checkpoint", path.name) > 0
    assert remote.fetch(there, "checkpoint", path.name)
    assert damage(there.folder("checkpoint", path.name)) == []


def test_what_is_made_anew_goes_in_place_of_the_old(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    remote.send(here, "checkpoint", publish(here, "sft").name)
    path = publish(there, "sft", files={"model.safetensors": b"other"})
    assert remote.send(there, "checkpoint", path.name) == 0
    assert not remote.has(path)
    assert remote.send(there, "checkpoint", path.name, replace=True) == 5
    assert remote.has(path) and not remote.has(here.folder("checkpoint", path.name))


def test_everything_that_the_remote_lacks_is_sent_but_nothing_damaged(here: ArtifactStore, remote: Remote) -> None:
    made = family(here)
    (made["dpo"] / "config.json").write_text("?")
    send_missing(here, remote)
    safe = {stage for stage, path in made.items() if remote.has(path)}
    assert safe == made.keys() - {"dpo"}


# --- the catalogue and the cache


def test_another_machine_knows_manifests_and_fetches_files_where_it_needs_them(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    made = family(here)
    send_missing(here, remote)
    refresh(there, remote)
    path = there.folder("checkpoint", name_of("dpo"))
    assert is_pruned(path) and damage(path) == [] and not (path / "model.safetensors").exists()
    assert read_manifest(path) == read_manifest(made["dpo"])
    known = {each.name for each in there.newest_first("checkpoint")}
    assert known == {made[stage].name for stage in ("sft", "reward", "dpo")}
    told: list[str] = []
    restore(there, path, "test", lambda: pytest.fail("nothing is computed"), told.append)
    assert told == [f"fetching {path.name} from {remote.url}"]
    assert content_of(path) == content_of(made["dpo"])


def test_a_manifest_of_which_half_was_written_is_no_folder(there: ArtifactStore, remote: Remote) -> None:
    remote.objects.write(f"checkpoints/sft-0123/{MANIFEST}", b'{"kind": ')
    refresh(there, remote)
    assert there.newest_first("checkpoint") == []


def test_aliases_are_shared_and_changed_one_after_the_other(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    for number, store in enumerate((here, there, here)):
        with changing_alias(store, "champion", "test", lambda who: None):
            path = store.home / "aliases" / "champion.json"
            before = path.read_text() if path.exists() else ""
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{before}{number}")
    refresh(there, remote)
    assert (there.home / "aliases" / "champion.json").read_text() == "012"


def test_decisions_travel_with_their_alias(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    asked = Decision(
        alias="champion", checkpoint="dpo-1", run="r", state="held", asked=utc_now(), until=in_days(1), asking="id"
    )
    with changing_alias(here, "champion", "test", lambda who: None):
        write_decision(here.home, asked)
    refresh(there, remote)
    assert awaited(there.home) == [asked]
    decided = asked.model_copy(update={"state": "rejected", "by": "somebody"})
    with changing_alias(there, "champion", "test", lambda who: None):
        write_decision(there.home, decided)
    with changing_alias(here, "champion", "test", lambda who: None):
        assert read_decision(here.home, "champion", "dpo-1") == decided


def test_the_local_root_is_bounded(here: ArtifactStore, remote: Remote) -> None:
    made = family(here)
    send_missing(here, remote)
    unsent = publish(here, "sft", 1)
    each = sum(map(len, FILES.values()))
    for stage in ("dpo", "sft", "reward", "dataset", "base"):
        here.note_use(KINDS.get(stage, "checkpoint"), made[stage].name)
        time.sleep(0.01)
    small = Remote(remote.objects, SECONDS, cache_bytes=each * 4)
    assert make_room(here, small) == 2 * each
    gone = {stage for stage, path in made.items() if is_pruned(path)}
    assert gone == {"dpo", "sft"}
    assert not is_pruned(unsent)
    assert make_room(here, Remote(remote.objects, SECONDS, cache_bytes=0)) == 3 * each
    assert not is_pruned(unsent) and damage(unsent) == []


# --- leases


def lease(remote: Remote, owner: str, seconds: float = SECONDS) -> Lease:
    return Lease(remote.objects, "sft", owner, f"run of {owner}", seconds)


def test_a_lease_is_held_by_one_and_handed_on(remote: Remote) -> None:
    first, second = lease(remote, "a", 60), lease(remote, "b", 60)
    assert not first.acquire(pytest.fail)
    waiting = threading.Event()
    told: list[str] = []

    def wait(who: str) -> None:
        told.append(who)
        waiting.set()

    thread = threading.Thread(target=second.acquire, args=(wait,))
    thread.start()
    assert waiting.wait(10)
    first.renew()
    first.check()
    assert thread.is_alive()
    first.release()
    thread.join(10)
    assert not thread.is_alive() and told == ["run of a, which makes it"]
    second.check()
    first.renew()  # too late
    with pytest.raises(StageError, match="another machine may make the same"):
        first.check()
    second.renew()
    second.check()


def test_a_lease_that_is_not_renewed_is_taken_over(remote: Remote) -> None:
    first, second = lease(remote, "a"), lease(remote, "b")
    first.acquire(pytest.fail)
    started = time.monotonic()
    assert second.acquire(lambda who: None)
    assert SECONDS < time.monotonic() - started < SECONDS + 6
    with pytest.raises(StageError, match="could not be renewed in time"):
        first.check()
    first.renew()
    with pytest.raises(StageError):
        first.check()
    first.release()
    second.renew()
    second.check()


def test_what_the_same_root_left_behind_is_taken_over_at_once(remote: Remote) -> None:
    lease(remote, "a", 3600).acquire(pytest.fail)
    assert not lease(remote, "a", 3600).acquire(pytest.fail)


@at_length
def test_of_many_that_take_over_one_succeeds(remote: Remote) -> None:
    lease(remote, "dead", 0.0).acquire(pytest.fail)
    time.sleep(2.1)
    claims = [lease(remote, f"machine {number}", 60) for number in range(6)]
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda claim=claim: taken.append(claim._try())) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) <= 1  # each may have seen another one's claim and given way


# --- unfinished stages


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
    assert remote.fetch_unfinished("checkpoint", "sft-1", theirs) == 6
    whole = last_whole_checkpoint(theirs / TRAINER)
    assert whole and whole[1].step == 6
    assert (theirs / LEDGER).read_text() == "attempt 6\nattempt 0\n"
    assert remote.fetch_unfinished("checkpoint", "sft-1", theirs) == 0


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
    assert remote.fetch_unfinished("checkpoint", "sft-1", other) == 2
    found = last_whole_checkpoint(other / TRAINER)
    assert found and found[1].step == 2


@at_length
def test_what_is_trained_is_sent_while_it_is_held(here: ArtifactStore, remote: Remote) -> None:
    with sole_maker(here, remote, "checkpoint", "sft-1", "test", pytest.fail) as check:
        trainer_checkpoint(here.partial("checkpoint", "sft-1"), 2)
        time.sleep(SECONDS + 2)
        check()  # renewed meanwhile
        done = remote.steps_done("checkpoint", "sft-1")
        assert done and done.step == 2
    remote.discard_unfinished("checkpoint", "sft-1")
    assert remote.steps_done("checkpoint", "sft-1") is None
