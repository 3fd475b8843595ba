"""A remote as far as requests and leases go: on a real S3 server, and in a folder."""

import threading
import time
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models.errors import InputError, StageError
from tasks.remote import objects as requests
from tasks.remote.lease import Lease
from tasks.remote.objects import ObjectStore, Unreachable
from tasks.remote.remote import Remote
from tasks.remote.sharing import keep_safe, send_missing
from tasks.store import ArtifactStore, damage
from tests.folders import publish
from tests.object_server import BUCKET, ObjectServer
from tests.remotes import LEASE_SECONDS, at_length


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
def test_a_bucket_that_is_not_there_is_told(object_server: ObjectServer) -> None:
    with pytest.raises(InputError, match="no such bucket"):
        Remote(ObjectStore("s3://nowhere/x"), LEASE_SECONDS).check()


@pytest.mark.slow
def test_wrong_and_missing_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ObjectServer(checked=True)
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(InputError, match="refuses these credentials"):
            Remote(ObjectStore(f"s3://{BUCKET}/x"), LEASE_SECONDS).check()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(InputError, match="no credentials"):
            Remote(ObjectStore(f"s3://{BUCKET}/x"), LEASE_SECONDS).check()
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_that_goes_away_costs_nothing_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_WAITS_SECONDS", (0.1,))
    server = ObjectServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    remote, told = Remote(ObjectStore(f"s3://{BUCKET}/x"), LEASE_SECONDS), list[str]()
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


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_not_asked_without_end(
    object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class HangUp(BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.client_address)

    with ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(requests, "_WAITS_SECONDS", ())
        with pytest.raises(Unreachable):
            ObjectStore(f"s3://{BUCKET}/x").read("one")
        server.shutdown()
    assert 1 <= len(asked) <= 4  # twice, and each time once more by the HTTP library


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID"),
        ("gs://bucket/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://box/x", "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_missing_credentials_are_named_as_the_store_names_them(
    monkeypatch: pytest.MonkeyPatch, url: str, remedy: str
) -> None:
    class DefaultCredentialsError(Exception):
        """As some clients name it."""

    class Client(MemoryFileSystem):
        def cat_file(self, *asked: object, **options: object) -> bytes:
            raise DefaultCredentialsError("none found")

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **options: (Client(), "x"))
    with pytest.raises(InputError, match=f"no credentials.*{remedy}"):
        ObjectStore(url).read("one")


# --- leases


def lease(remote: Remote, owner: str, seconds: float = LEASE_SECONDS) -> Lease:
    return Lease(remote.objects, "sft", owner, f"run of {owner}", seconds)


def test_a_lease_is_held_by_one_and_handed_on(remote: Remote) -> None:
    first, second = lease(remote, "a", 60), lease(remote, "b", 60)
    first.acquire(pytest.fail)
    assert first.is_free() and not second.is_free()
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


@pytest.mark.slow
def test_a_lease_that_is_not_renewed_is_taken_over(remote: Remote) -> None:
    first, second = lease(remote, "a"), lease(remote, "b")
    first.acquire(pytest.fail)
    started = time.monotonic()
    second.acquire(lambda who: None)
    assert LEASE_SECONDS < time.monotonic() - started < LEASE_SECONDS + 6
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
    lease(remote, "a", 3600).acquire(pytest.fail)


@pytest.mark.slow
@at_length
def test_of_many_that_take_over_one_succeeds(remote: Remote) -> None:
    lease(remote, "dead", 0.0).acquire(pytest.fail)
    time.sleep(2.1)
    taken: list[Lease] = []

    def take(claim: Lease) -> None:
        for _ in range(50):  # each may have seen another one's claim and given way
            if claim._try():
                taken.append(claim)
            if taken:
                return

    claims = [lease(remote, f"machine {number}", 60) for number in range(6)]
    threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = taken
    assert not any(claim._try() for claim in claims if claim is not winner)
    winner.renew()
    winner.check()
